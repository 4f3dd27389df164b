import hashlib
import json
import math
import random
import subprocess
import sys

import pytest

from bayesrule.errors import ConfigError
from bayesrule.runs.identity import (
    NEUTRAL,
    VOLATILE,
    canonical_json,
    is_run_id,
    run_id,
    without_volatile,
)

CONFIG = {
    "seed": 3,
    "posterior": {"lr": 0.1, "ess": 800, "betas": [0.9, 0.9995], "name": "ivon"},
    "trainer": {"threads": 1, "progress": True, "checkpoint_seconds": 30, "max_epochs": 100},
    "paths": {"runs": "/somewhere"},
    "compile": False,
    "val": None,
}


def test_id_is_the_hash_of_the_json_without_volatile_keys():
    kept = {k: v for k, v in CONFIG.items() if k != "paths"}
    kept["trainer"] = {"threads": 1, "max_epochs": 100}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    assert run_id(CONFIG) == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert is_run_id(run_id(CONFIG))


def test_order_and_number_spelling_do_not_matter():
    def shuffled(node):
        if isinstance(node, dict):
            items = list(node.items())
            random.Random(1).shuffle(items)
            return {k: shuffled(v) for k, v in items}
        return node

    assert run_id(shuffled(CONFIG)) == run_id(CONFIG)
    other = json.loads(json.dumps(CONFIG))
    other["posterior"].update(lr=1e-1, ess=8e2)
    assert run_id(other) == run_id(CONFIG)
    assert run_id({"a": -0.0}) == run_id({"a": 0})
    assert run_id({"a": (1, 2)}) == run_id({"a": [1, 2]})


@pytest.mark.parametrize("key", VOLATILE)
def test_volatile_keys_do_not_matter(key):
    changed = json.loads(json.dumps(CONFIG))
    node = changed
    *parents, last = key.split(".")
    for name in parents:
        node = node.setdefault(name, {})
    node[last] = {"anything": 7, "nan": math.nan} if not parents else 123
    assert run_id(changed) == run_id(CONFIG)


def test_a_key_that_only_starts_like_a_volatile_one_matters():
    base = run_id({"a": 1})
    for key in ("pathsx", "notes", "tagsy", "loggers"):
        assert run_id({"a": 1, key: 1}) != base
    assert run_id({"trainer": {"progressive": 1}}) != run_id({"trainer": {}})
    assert run_id({"model": {"paths": 1}}) != run_id({"model": {}})


def placed(config, key, value):
    """The configuration with one dotted key set."""
    changed = json.loads(json.dumps(config))
    node = changed
    *parents, last = key.split(".")
    for name in parents:
        node = node.setdefault(name, {})
    node[last] = value
    return changed


@pytest.mark.parametrize("key", NEUTRAL)
def test_a_newer_option_at_its_neutral_value_changes_nothing(key):
    """Runs recorded before the option was there are found again; any other value is another run."""
    group, _, option = key.partition(".")
    config = placed(CONFIG, f"{group}.another", 1)
    for place in (key, f"{group}.member.{option}", f"{group}.member.base.{option}"):
        older = placed(config, place.rpartition(".")[0] + ".beside", 2)
        newer = placed(older, place, NEUTRAL[key])
        assert run_id(newer) == run_id(older)
        assert run_id(placed(older, place, "other")) != run_id(older)
    elsewhere = placed(config, f"elsewhere.{option}", NEUTRAL[key])
    assert run_id(elsewhere) != run_id(config)


def test_neutral_values_are_compared_with_their_type(monkeypatch):
    monkeypatch.setitem(NEUTRAL, "posterior.new", False)
    base = run_id(CONFIG)
    assert run_id(placed(CONFIG, "posterior.new", False)) == base
    others = [run_id(placed(CONFIG, "posterior.new", v)) for v in (True, 0, None, "false", [])]
    assert len({base, *others}) == 6


def test_every_other_change_matters():
    def leaves(node, path=()):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, (*path, key))
            else:
                yield (*path, key)

    seen = {run_id(CONFIG)}
    stable = without_volatile(CONFIG)
    for path in leaves(stable):
        changed = json.loads(json.dumps(CONFIG))
        node = changed
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = "changed"
        seen.add(run_id(changed))
    assert len(seen) == 1 + len(list(leaves(stable)))


def test_distinct_types_stay_distinct():
    values = [1, True, "1", None, [1], 0, False, "", [], {}, 0.1, "0.1"]
    assert len({run_id({"a": value}) for value in values}) == len(values)


def test_stable_over_processes():
    code = (
        "import json,sys; from bayesrule.runs import run_id; print(run_id(json.loads(sys.argv[1])))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, json.dumps(CONFIG)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77"},
    )
    assert out.stdout.strip() == run_id(CONFIG)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"posterior": {"lr": math.nan}}, "posterior.lr"),
        ({"a": [0, {"b": math.inf}]}, "a[1].b"),
        ({"model": {"act": object()}}, "model.act"),
        ({"x": {1: 2}}, "x"),
        ({"s": {1, 2}}, "s"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_key(config, key):
    with pytest.raises(ConfigError) as caught:
        run_id(config)
    assert str(caught.value).startswith(key + " ")


def test_canonical_floats_read_back_to_the_same_double():
    generator = random.Random(0)
    for _ in range(2000):
        value = generator.uniform(-1, 1) * 10.0 ** generator.randint(-300, 300)
        assert float(json.loads(canonical_json(value))) == value


def test_form_of_an_id():
    assert is_run_id("0123456789abcdef")
    for wrong in ("0123456789abcde", "0123456789ABCDEF", "../../etc/passwd0", ""):
        assert not is_run_id(wrong)
