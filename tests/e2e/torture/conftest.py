"""One warm process per test session, and command lines forked from it."""

import pytest
from command_line import CommandLine
from forked import ForkedCommandLine, WarmProcess


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    process = WarmProcess(CommandLine(tmp_path_factory.mktemp("warm")).environment)
    yield process
    process.close()


@pytest.fixture
def fork(warm, tmp_path):
    return ForkedCommandLine(warm, tmp_path / "runs")
