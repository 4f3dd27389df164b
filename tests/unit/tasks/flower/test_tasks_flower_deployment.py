"""Waiting for a deployment: what is started, what is found again, how it may end; no Flower."""

import contextlib
import tomllib

import pytest

from bayesrule.cli.reproduce import _engine
from bayesrule.config import compose
from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.runs import RunStore, read_json, write_json
from bayesrule.tasks.flower import deployment, environment
from bayesrule.tasks.flower.deployment import remote_rounds
from bayesrule.tasks.progress import Progress
from bayesrule.tasks.signals import Stopped, StopRequest

CONFIG = ["task=federated", "data=digits", "posterior=adamw", "posterior.weight_decay=0"]


class SuperLink:
    """Answers of `flwr`, and what the ServerApp leaves in the run folder."""

    def __init__(self, path, ending=None, status="running"):
        self.path, self.ending, self.status, self.calls = path, ending, status, []

    def __call__(self, place, *words):
        self.calls.append(words[0])
        done = words[0] == "run" or self.calls.count("ls") == 3
        if done and self.ending is not None:
            write_json(place.ending, self.ending)
        return {"run-id": "77", "runs": [{"run-id": "77", "status": self.status}]}


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """Return a function that waits for a SuperLink with some answers, in one run folder."""
    config = compose([*CONFIG, "engine=deployment"])
    folder = RunStore(tmp_path).folder(config)
    folder.path.mkdir(parents=True)
    monkeypatch.setattr(deployment, "_LOOK_SECONDS", 0.0)

    def wait(stop=None, **answers):
        link = SuperLink(folder.path, **answers)
        monkeypatch.setattr(deployment, "_flwr", link)
        progress = Progress("", 1, enabled=False)
        try:
            remote_rounds(config, folder, stop or StopRequest(), progress)
        finally:
            wait.calls = link.calls
        return link

    wait.place = folder.path / "flower"
    return wait


def test_a_run_is_started_with_an_app_that_imports_ours(waiting):
    assert waiting(ending={}).calls == ["run"]
    app = waiting.place / "app"
    assert 'serverapp = "bayesrule_app.server_app:app"' in (app / "pyproject.toml").read_text()
    assert str(waiting.place.parent) in (app / "pyproject.toml").read_text()
    assert "import client_app" in (app / "bayesrule_app" / "client_app.py").read_text()
    assert 'address = "127.0.0.1:8000"' in (waiting.place / "home" / "config.toml").read_text()
    assert read_json(waiting.place / "started.json") == {"flower_run": "77"}


def test_how_the_rounds_end_is_how_the_run_ends(waiting):
    with pytest.raises(BayesruleError, match="round 2: 0 of 3 clients"):
        waiting(ending={"error": "round 2: 0 of 3 clients"})
    with pytest.raises(Stopped):
        waiting(ending={"signum": 15})
    assert waiting(ending={}).calls == ["run"]  # the same command again starts anew


def test_a_run_that_the_superlink_still_works_on_is_found_again(waiting):
    waiting.place.mkdir()
    write_json(waiting.place / "started.json", {"flower_run": "77"})
    assert waiting(ending={}).calls == ["ls", "ls", "ls"]


def test_a_run_that_is_gone_is_started_anew_and_a_silent_end_is_said(waiting):
    stop = StopRequest()
    stop.signum = 15
    waiting.place.mkdir()
    write_json(waiting.place / "started.json", {"flower_run": "77"})
    with pytest.raises(BayesruleError, match="run 77 ended without a word"):
        waiting(status="finished:failed", stop=stop)
    assert waiting.calls == ["ls", "run", "ls"]
    assert read_json(waiting.place / "stop.json") == {"signum": 15}


def test_the_server_is_stopped_by_a_file(tmp_path):
    stop = deployment._StopFile(tmp_path / "stop.json")
    stop.check()
    write_json(tmp_path / "stop.json", {"signum": 2})
    with pytest.raises(Stopped):
        stop.check()


def test_the_app_names_any_folder(tmp_path):
    folder = RunStore(tmp_path / 'a "quoted" \N{ROCKET} folder').folder(compose(CONFIG))
    deployment._Place(tmp_path).write_app(folder, "127.0.0.1:8000")
    found = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text(encoding="utf-8"))
    assert found["tool"]["flwr"]["app"]["config"]["folder"] == str(folder.path.resolve())


@pytest.mark.parametrize(
    ("outcome", "ending"),
    [
        (None, {}),
        (Stopped(15), {"signum": 15}),
        (BayesruleError("round 2: none"), {"error": "round 2: none"}),
        (KeyError("w"), {"error": "KeyError('w')"}),
        (SystemExit(0), {"error": "the ServerApp was ended from outside, before its rounds"}),
    ],
)
def test_the_server_says_how_it_ended(tmp_path, monkeypatch, outcome, ending):
    """Flower ends a ServerApp that is stopped or killed by `sys.exit`: that is no good end."""

    def rounds(grid, folder, stop):
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(deployment, "_rounds", rounds)
    (tmp_path / "run" / "flower").mkdir(parents=True)
    with contextlib.suppress(KeyError, SystemExit):
        deployment.serve(None, str(tmp_path / "run"))
    assert read_json(tmp_path / "run" / "flower" / "ending.json") == ending


def test_a_call_that_does_not_come_back_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(deployment, "_CALL_SECONDS", 0.01)
    with pytest.raises(BayesruleError, match=r"flwr ls: no answer within 0\.01 s"):
        deployment._flwr(deployment._Place(tmp_path), "ls")


def test_a_missing_extra_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(environment.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package flwr.*pip install"):
        environment.prepare("flower", tmp_path)


def test_results_of_another_engine_have_a_folder_of_their_own():
    assert _engine(["engine=flower", "engine.workers=2"]) == "flower"
    assert _engine(["engine=flower", "trainer.epochs=2"]) is None
    assert _engine([]) is None
