import pytest

from bayesrule.errors import ConfigError
from bayesrule.runs.seeds import parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("10-14", (10, 11, 12, 13, 14)),
        ("100:105", (100, 101, 102, 103, 104)),
        ("7", (7,)),
        ("0", (0,)),
        ("3-3", (3,)),
        ("1,4, 10-12", (1, 4, 10, 11, 12)),
        ("5,1:3", (5, 1, 2)),
        ([10, 11], (10, 11)),
        ((4,), (4,)),
        (range(2, 4), (2, 3)),
    ],
)
def test_grammar(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    [
        *["", "a", "-1", "1-", "5-3", "5:5", "1,,2", "1;2", "1.5", "0-99999999", "1e3", "1,1"],
        *["1-3,2", [], [1, 1], [True], [-1], [1.0], ["1"], 615, None, {"a": 1}, b"12"],
    ],
)
def test_everything_else_is_refused_with_the_name_of_the_option(text):
    with pytest.raises(ConfigError, match=r"^--seeds: "):
        parse_seeds(text, where="--seeds")


def test_long_lists_with_a_seed_twice_are_refused():
    with pytest.raises(ConfigError, match="twice"):
        parse_seeds([*range(600), 5])
