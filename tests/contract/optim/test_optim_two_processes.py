"""Two gloo processes learn exactly what one process does.

Own noise with reduced statistics equals one process with all samples; shared noise with averaged
gradients (DDP, FSDP) equals one process on the global batch. The two processes run all scenarios
once; each test compares one of them with its twin in this process.
"""

import pytest
import torch
import torch.multiprocessing
from optim_cases import CASES, assert_identical, every_case
from optim_ranks import (
    DTYPES,
    FSDP_CASES,
    WORLD,
    alone_on_the_global_batch,
    alone_with_all_samples,
    everything_on_a_rank,
    free_port,
)

by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_samples = pytest.mark.parametrize("samples", [1, 2])
# (g0 + g1) + (g2 + g3) instead of ((g0 + g1) + g2) + g3, after eight steps
ROUNDING = {"float32": 1e-7, "float64": 1e-13}


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(
        everything_on_a_rank, args=(free_port(), str(folder)), nprocs=WORLD, join=True
    )
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith(("stream", "steps")):
            assert torch.equal(found[name], value), name
        else:
            worst = (found[name] - value).abs().max()
            assert torch.allclose(found[name], value, tolerance, tolerance), f"{name}: {worst:.1e}"


@every_case
@by_dtype
def test_statistics_of_one_sample_each_are_bit_equal(ranks, case, dtype):
    expected = alone_with_all_samples(case, DTYPES[dtype], 1)
    for rank in ranks:
        assert_identical(rank[f"statistics/{case}/{dtype}/1"], expected)


@every_case
@by_dtype
def test_statistics_of_two_samples_each(ranks, case, dtype):
    expected = alone_with_all_samples(case, DTYPES[dtype], 2)
    assert_close(ranks[0][f"statistics/{case}/{dtype}/2"], expected, ROUNDING[dtype])


@every_case
def test_statistics_of_samples_by_hand(ranks, case):
    if case.stages > 1:
        pytest.skip("takes no samples by hand")
    expected = ranks[0][f"statistics/{case}/float64/2"].copy()
    expected.pop("losses")
    for rank in ranks:
        assert_identical(rank[f"by hand/{case}"], expected)


@every_case
@by_dtype
@by_samples
def test_averaged_gradients_are_the_global_batch(ranks, case, dtype, samples):
    expected = alone_on_the_global_batch(case, DTYPES[dtype], samples)
    tolerance = 10 * ROUNDING[dtype]  # the batch mean itself is summed in another order
    assert_close(ranks[0][f"gradients/{case}/{dtype}/{samples}"], expected, tolerance)


@pytest.mark.parametrize("case", [c for c in CASES if c.name in FSDP_CASES], ids=str)
@by_samples
def test_sharded_parameters_are_the_global_batch(ranks, case, samples):
    expected = alone_on_the_global_batch(case, DTYPES["float64"], samples)
    found = ranks[0][f"sharded/{case}/{samples}"]
    for name, value in found.items():
        if not name.startswith("drawn"):
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
    for i in range(4):
        assert torch.equal(found[f"drawn {i}"], found[f"param {i}"]) != case.stochastic
        assert torch.equal(found[f"drawn {i}"], ranks[1][f"sharded/{case}/{samples}"][f"drawn {i}"])


def test_methods_that_say_so_are_those_held_on_shards():
    held = {case.kind for case in CASES if case.name in FSDP_CASES}
    assert held == {case.kind for case in CASES if case.kind.shards}


def test_ranks_never_drift_apart(ranks):
    """Parameters, state, random streams and losses: the same on both ranks after every scenario."""
    one, two = ranks
    assert one.keys() == two.keys()
    for name, found in one.items():
        if name != "refusals":
            assert_identical(found, two[name])


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        ("own_noise_averaged_gradients", "every rank has the same gradient"),
        ("own_noise_not_averaged_but_promised", "they differ"),
        ("deterministic_not_averaged_but_promised", "they differ"),
        ("generators_differ", "other numbers on each rank"),
        ("generators_differ_with_own_noise", "other numbers on each rank"),
        ("own_noise_for_shards", "sync='gradients'"),
    ],
)
def test_unsound_mixes_are_refused(ranks, attempt, says):
    for rank in ranks:
        assert rank["refusals"][attempt] is not None, "went through"
        assert says in rank["refusals"][attempt]
