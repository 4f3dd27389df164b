"""What the two processes of `test_optim_two_processes` run, and their one-process twins."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from optim_cases import (
    CASES,
    F32,
    F64,
    Case,
    Net,
    batches,
    closure_of,
    everything,
    learn,
    shard,
)
from torch.nn.parallel import DistributedDataParallel

from bayesrule.errors import Unsupported
from bayesrule.optim import IVON, SGD

WORLD, STEPS = 2, 8
DTYPES = {"float32": F32, "float64": F64}
FSDP_CASES = ("sgd", "adamw", "ivon", "ivon_gradsq", "bayesbinn", "ste", "bop", "pmf")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ------------------------------------------------------ one process, the truth


def alone_with_all_samples(case: Case, dtype: torch.dtype, samples: int) -> dict[str, Any]:
    """One process, WORLD * samples samples, where sample r * samples + s sees shard r."""
    model = Net(dtype)
    opt = case(model.parameters(), mc_samples=WORLD * samples)
    losses = []
    for batch in batches(STEPS, dtype):
        calls = iter(range(WORLD * samples * case.stages))

        def closure(batch=batch, calls=calls):
            rank = next(calls) // (case.stages * samples)
            return closure_of(opt, model, shard(batch, rank, WORLD))()

        losses.append(opt.step(closure))
    return {**everything(opt), "losses": torch.stack(losses)}


def alone_on_the_global_batch(case: Case, dtype: torch.dtype, samples: int) -> dict[str, Any]:
    """One process on the batches whose shards the ranks see."""
    model = Net(dtype)
    opt = case(model.parameters(), mc_samples=samples)
    losses = learn(opt, model, batches(STEPS, dtype))
    return {**everything(opt), "losses": torch.stack(losses)}


# ------------------------------------------------------------------ two ranks


def statistics(case: Case, dtype: torch.dtype, samples: int, rank: int) -> dict[str, Any]:
    """Own noise, statistics reduced."""
    model = Net(dtype)
    opt = case(model.parameters(), mc_samples=samples, seed=7 + rank)  # rank 0's seed counts
    with opt.sampled_params() if rank == 0 and samples == 1 else torch.no_grad():
        pass  # one rank alone may predict: nothing waits for the others
    opt._streams.generators.pop("predict", None)
    losses = learn(opt, model, [shard(b, rank, WORLD) for b in batches(STEPS, dtype)])
    return {**everything(opt), "losses": torch.stack(losses)}


def by_hand(case: Case, rank: int) -> dict[str, Any]:
    """Own noise, the samples collected by `sampled_params(train=True)`."""
    model = Net(F64)
    opt = case(model.parameters(), mc_samples=2)
    for batch in batches(STEPS, F64):
        for _ in range(2):
            with opt.sampled_params(train=True):
                closure_of(opt, model, shard(batch, rank, WORLD))()
        opt.step()
    return everything(opt)


def gradients(case: Case, dtype: torch.dtype, samples: int, rank: int) -> dict[str, Any]:
    """The same noise, gradients averaged by DDP."""
    model = Net(dtype)
    opt = case(model.parameters(), mc_samples=samples, sync="gradients")
    wrapped = DistributedDataParallel(model)
    losses = learn(opt, wrapped, [shard(b, rank, WORLD) for b in batches(STEPS, dtype)])
    return {**everything(opt), "losses": torch.stack(losses)}


def sharded(case: Case, rank: int, samples: int) -> dict[str, Any]:
    """FSDP: the same noise, cut like the parameters; gradients averaged."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Net(F64)
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    opt = case(model.parameters(), mc_samples=samples, sync="gradients")
    learn(opt, model, [shard(b, rank, WORLD) for b in batches(STEPS, F64)])
    with opt.sampled_params():
        drawn = [param.full_tensor().detach() for param in model.parameters()]
    out = {f"param {i}": p.full_tensor().detach() for i, p in enumerate(model.parameters())}
    for i, param in enumerate(model.parameters()):
        out |= {f"{n} {i}": opt.state[param][n].full_tensor().detach() for n in case.state}
    return out | {f"drawn {i}": value for i, value in enumerate(drawn)}


def refusals(rank: int) -> dict[str, str | None]:
    """Return what each unsound combination says on its first step."""

    def ivon(model: torch.nn.Module, **options: Any) -> IVON:
        return IVON(model.parameters(), lr=0.1, ess=40.0, **{"seed": 1, **options})

    def own_noise_averaged_gradients() -> None:
        model = Net()
        learn(ivon(model), DistributedDataParallel(model), mine)

    def own_noise_not_averaged_but_promised() -> None:
        model = Net()
        learn(ivon(model, sync="gradients"), model, mine)

    def deterministic_not_averaged_but_promised() -> None:
        model = Net()
        learn(SGD(model.parameters(), sync="gradients"), model, mine)

    def generators_differ() -> None:
        model = Net()
        generator = torch.Generator().manual_seed(rank)
        opt = ivon(model, sync="gradients", seed=None, generator=generator)
        learn(opt, DistributedDataParallel(model), mine)

    def generators_differ_with_own_noise() -> None:
        model = Net()
        generator = torch.Generator().manual_seed(rank)
        learn(ivon(model, seed=None, generator=generator), model, mine)

    def own_noise_for_shards() -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = Net()
        fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
        learn(ivon(model), model, mine)

    mine = [shard(batch, rank, WORLD) for batch in batches(1)]
    said: dict[str, str | None] = {}
    tried: list[Callable[[], None]] = [
        own_noise_averaged_gradients,
        own_noise_not_averaged_but_promised,
        deterministic_not_averaged_but_promised,
        generators_differ,
        generators_differ_with_own_noise,
        own_noise_for_shards,
    ]
    for attempt in tried:
        try:
            attempt()
        except Unsupported as error:
            said[attempt.__name__] = str(error)
        else:
            said[attempt.__name__] = None
    return said


def everything_on_a_rank(rank: int, port: int, path: str) -> None:
    """Run every scenario as one of two ranks and store what came out."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD
    )
    found: dict[str, Any] = {}
    for case in CASES:
        for label, dtype in DTYPES.items():
            for samples in (1, 2):
                key = f"{case}/{label}/{samples}"
                found[f"statistics/{key}"] = statistics(case, dtype, samples, rank)
                found[f"gradients/{key}"] = gradients(case, dtype, samples, rank)
        if case.stages == 1:
            found[f"by hand/{case}"] = by_hand(case, rank)
        if case.name in FSDP_CASES:
            for samples in (1, 2):
                found[f"sharded/{case}/{samples}"] = sharded(case, rank, samples)
    found["refusals"] = refusals(rank)
    torch.save(found, f"{path}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
