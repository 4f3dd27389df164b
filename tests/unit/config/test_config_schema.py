"""The grammar of `_schema_` lines, and what validation does with it."""

import pytest

from bayesrule.config import compose, locate
from bayesrule.config.compose import group_options, in_hydra_words
from bayesrule.config.schema import nearest, parse_rule, validate
from bayesrule.errors import ConfigError
from bayesrule.runs import run_id


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ("float > 0", 1, 1.0),
        ("float > 0", "1e-3", 1e-3),
        ("float? > 0", None, None),
        ("int >= 1", 3.0, 3),
        ("float in [0, 1)", 0, 0.0),
        ("float in (0, inf]", float("inf"), float("inf")),
        ("price | gradsq", "price", "price"),
        ("15 | 20", 15, "15"),
        ("str?", None, None),
        ("str", 12, "12"),
        ("bool", True, True),
        ("list[int] >= 1", [1, 2.0], [1, 2]),
        ("list[str]", [], []),
        ("float > 0, <= 2", 2, 2.0),
    ],
)
def test_values_that_fit_are_coerced(rule, value, expected):
    result = parse_rule(rule).coerce(value, "key")
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("float > 0", 0),
        ("float > 0", "abc"),
        ("float > 0", float("nan")),
        ("float > 0", True),
        ("float > 0", None),
        ("int >= 1", 1.5),
        ("float in [0, 1)", 1),
        ("float in (0, 1]", 0),
        ("price | gradsq", "prise"),
        ("bool", 1),
        ("list[int] >= 1", [1, 0]),
        ("list[int]", 3),
        ("str", {"a": 1}),
        ("float > 0, <= 2", 3),
    ],
)
def test_values_that_do_not_fit_name_the_key(rule, value):
    with pytest.raises(ConfigError, match=r"some\.key"):
        parse_rule(rule).coerce(value, "some.key")


@pytest.mark.parametrize("text", ["float >", "int in [0, 1", "a | | b", ""])
def test_lines_outside_the_grammar(text):
    with pytest.raises(ConfigError, match="schema line"):
        parse_rule(text)


def test_validation_drops_the_schema_and_refuses_unknown_keys():
    node = {"a": 1, "inner": {"b": "x", "_schema_": {"b": "x | y"}}, "_schema_": {"a": "float"}}
    assert validate(node) == {"a": 1.0, "inner": {"b": "x"}}
    with pytest.raises(ConfigError, match=r"unknown key 'inner\.c'"):
        validate({"inner": {"b": "x", "c": 1, "_schema_": {"b": "x | y"}}})


def test_nearest_prefers_close_words_and_falls_back_to_the_last_part():
    assert "posterior.lr" in nearest("posterior.lrr", ["posterior.lr", "seed"])
    assert "posterior.lr" in nearest("x.lr", ["posterior.lr", "seed"])
    assert nearest("zzz", ["posterior.lr"]) == ""


def test_spelling_does_not_change_a_run():
    a = compose(["posterior=ivon", "posterior.lr=0.1", "trainer.epochs=3"])
    b = compose(["trainer.epochs=3", "posterior.lr=1e-1"])
    assert run_id(a) == run_id(b)
    assert run_id(a) != run_id(compose(["trainer.epochs=3", "posterior.lr=0.1001"]))
    assert run_id(a) == run_id({**a, "note": "other words", "tags": ["x"]})


def test_members_of_composites():
    assert in_hydra_words(["posterior.member=ivon", "posterior.member.lr=1"]) == [
        "posterior@posterior.member=ivon",
        "posterior.member.lr=1",
    ]
    config = compose(["posterior=deep_ensemble", "posterior.member=ivon", "posterior.member.lr=1"])
    assert config["posterior"]["member"]["lr"] == 1.0
    assert config["posterior"]["member"]["_target_"] == "bayesrule.optim.IVON"


def test_groups_list_their_options_without_base_files():
    assert "ivon" in group_options("posterior")
    assert not [name for name in group_options("data") if name.startswith("_")]
    assert "ivon/p2" in group_options("experiment")


@pytest.mark.parametrize(
    "target",
    ["os.system", "bayesrule", "bayesrule.optim.__loader__", "builtins.eval", "", "torch.load"],
)
def test_only_the_allow_list_is_imported(target):
    with pytest.raises(ConfigError, match="refused"):
        locate(target)


def test_users_can_add_a_package(monkeypatch):
    with pytest.raises(ConfigError):
        locate("json.dumps")
    monkeypatch.setenv("BAYESRULE_TARGETS", "json")
    assert locate("json.dumps")([1]) == "[1]"
    with pytest.raises(ConfigError, match="nosuch"):
        locate("json.nosuch")
