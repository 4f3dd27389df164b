"""Search spaces in Hydra's grammar, and the points that sampled sweeps and searches take."""

import math

import numpy as np
import pytest
from scipy import stats

from bayesrule.config.space import Dimension, Points, Space, read_space
from bayesrule.errors import ConfigError

SPACE = (
    "posterior=ivon",
    "posterior.lr=tag(log,interval(0.01,1))",
    "posterior.mc_samples=int(interval(1,3))",
    "trainer.batch_size=range(25,101,25)",
    "model=mlp,cnn",
    "seed=range(3)",
)


def test_every_form_of_the_grammar():
    space = read_space(SPACE, log=())
    assert space.fixed == ("posterior=ivon",)
    assert space.seeds == (0, 1, 2)
    assert space.dimensions == (
        Dimension("posterior.lr", "float", 0.01, 1.0, log=True),
        Dimension("posterior.mc_samples", "int", 1, 3),
        Dimension("trainer.batch_size", "int", 25, 100, step=25),
        Dimension("model", "choice", choices=("mlp", "cnn")),
    )
    assert Space.from_json(space.to_json()) == space


def test_the_log_option_globs_parts_and_float_ranges():
    space = read_space(
        [
            *("posterior.lr=interval(0.01,1)", "posterior=glob(iv*)", "posterior.member=ivon,sgd"),
            "model.dropout=range(0,0.5,0.1)",
        ],
        log=["posterior.lr"],
    )
    lr, posterior, member, dropout = space.dimensions
    assert lr.log
    assert posterior.choices == ("ivon",)
    assert member == Dimension("posterior.member", "choice", choices=("ivon", "sgd"))
    assert dropout.values() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert space.seeds == (0,)


@pytest.mark.parametrize(
    ("words", "log", "message"),
    [
        (["posterior.lr=interval(1,0.1)"], [], "the first end is the smaller"),
        (["posterior.lr=tag(log,interval(0,1))"], [], "above 0"),
        (["posterior=tag(log,choice(ivon,sgd))"], [], "no logarithm"),
        (["seed=interval(0,3)"], [], "seed is not searched"),
        (["seed=a,b"], [], "whole numbers"),
        (["posterior.lr=interval(0.1,1)"], ["posterior.lrr"], "did you mean 'posterior.lr'"),
        (["model=glob(zzz*)"], [], "matches nothing"),
        (["posterior.lr=interval(0.1)"], [], "posterior.lr=interval"),
        (["+new=interval(0,1)"], [], "neither added"),
    ],
)
def test_what_is_no_space_is_refused_with_a_sentence(words, log, message):
    with pytest.raises(ConfigError, match=message):
        read_space(words, log)


def test_a_wrong_end_of_the_space_is_found_before_anything_runs():
    with pytest.raises(ConfigError, match=r"posterior\.lr=-1"):
        read_space(["posterior.lr=interval(-1,1)"]).check()
    with pytest.raises(ConfigError, match="mlpp"):
        read_space(["model=mlp,mlpp"]).check()


def test_draws_have_the_distribution_that_was_asked_for():
    log = Dimension("a", "float", 0.01, 1.0, log=True)
    whole = Dimension("b", "int", 1, 4)
    points = [Points("random", (log, whole), seed=3)(n) for n in range(2000)]
    u = [math.log(point["a"] / 0.01) / math.log(100) for point in points]
    assert stats.kstest(u, "uniform").pvalue > 0.001
    counts = np.bincount([point["b"] for point in points], minlength=5)[1:]
    assert stats.chisquare(counts).pvalue > 0.001
    assert Points("random", (log, whole), seed=3)(7) == points[7]  # a function of the number alone


def test_the_mass_of_a_whole_number_on_a_log_scale():
    dimension = Dimension("b", "int", 1, 7, log=True)
    u = (np.arange(20_000) + 0.5) / 20_000
    counts = np.bincount([dimension.at(x) for x in u], minlength=8)[1:] / 20_000
    expected = [math.log((n + 1) / n) / math.log(8) for n in range(1, 8)]
    np.testing.assert_allclose(counts, expected, atol=1e-3)
    assert dimension.at(0.0) == 1
    assert dimension.at(1.0) == 7


def test_sobol_fills_the_space_evenly():
    dimensions = (Dimension("a", "float", 0, 1), Dimension("b", "float", 0, 1))
    points = [Points("sobol", dimensions, seed=1)(n) for n in range(16)]
    cells = {(int(4 * p["a"]), int(4 * p["b"])) for p in points}
    assert len(cells) == 16  # one point in each cell of the 4 x 4 grid: a (0, 4, 2)-net
    assert points != [Points("sobol", dimensions, seed=2)(n) for n in range(16)]


def test_a_grid_has_every_combination_once():
    dimensions = (
        Dimension("a", "choice", choices=("x", "y")),
        Dimension("b", "int", 25, 75, step=25),
    )
    points = Points("grid", dimensions)
    assert points.size == 6
    assert [tuple(points(n).values()) for n in range(6)] == [
        (a, b) for a in ("x", "y") for b in (25, 50, 75)
    ]
    with pytest.raises(ConfigError, match="can be counted"):
        Points("grid", (Dimension("a", "float", 0, 1),))


def test_words_read_back_to_the_value():
    assert Dimension("a", "float", 0, 1).word(0.123456789) == "a=0.123457"
    assert Dimension("a", "float", 1e-8, 1).word(1.5e-7) == "a=1.5e-07"
    assert Dimension("a", "int", 0, 9).word(4) == "a=4"
    assert Dimension("a", "choice", choices=("[64,64]",)).word("[64,64]") == "a=[64,64]"
