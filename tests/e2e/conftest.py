import pytest
from command_line import CommandLine


@pytest.fixture
def cli(tmp_path):
    return CommandLine(tmp_path / "runs")


@pytest.fixture
def other_cli(tmp_path):
    return CommandLine(tmp_path / "other")
