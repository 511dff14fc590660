"""BatchNorm under recomputation, accumulation and sharding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from neuropbr_dist.kernels.norm_act import activate
from neuropbr_dist.models.norm import StepBatchNorm2d, commit_statistics
from neuropbr_dist.parallel.sync_batch import average_running_statistics
from neuropbr_dist.training.step import gan_step
from tests.support import parity
from tests.support.distributed import run
from tests.support.parity import Case, Row, differences, networks, objective, rank_batch, relative, train_row
from tests.support.plain_loop import train_plain

STEPS = 2
SYNC = Case(norm="sync_batch", steps=STEPS)


def buffers_after_training(case: Case, row: Row, d_steps: int = 1) -> dict[str, Tensor]:
    """Running statistics of both networks on this rank."""
    g, d = networks(case, row)
    for step in range(case.steps):
        gan_step(g, d, rank_batch(case, row, step), objective(case), d_steps=d_steps)
    return {
        f"{part}/{name}": buffer.clone()
        for part, net in (("generator", g), ("discriminator", d))
        for name, buffer in net.module.named_buffers()
    }


def on(row: Row, function: Callable[..., Any], **arguments: Any) -> list[Any]:
    """Results of `function(row=row, ...)` by rank."""
    if row.world == 1:
        return [function(row=row, **arguments)]
    return run(row.world, f"{__name__}:{function.__name__}", row=row, **arguments)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("norm", "row"),
    [
        ("batch", Row(engine="single", world=1, accumulation=2, recompute="selective")),
        ("batch", Row(engine="single", world=1, accumulation=2, recompute="full")),
        ("batch", Row(engine="fsdp", accumulation=2, recompute="full")),
        ("sync_batch", Row(engine="ddp", accumulation=2, recompute="full")),
        ("sync_batch", Row(engine="fsdp", accumulation=2, recompute="selective")),
        ("sync_batch", Row(engine="deepspeed", stage=2, accumulation=2, recompute="full")),
        ("sync_batch", Row(engine="deepspeed", stage=3, accumulation=2, recompute="full")),
    ],
    ids=str,
)
def test_recomputation_leaves_running_statistics_alone(norm, row):
    case = Case(norm=norm, steps=STEPS)
    plain = on(replace(row, recompute="none"), buffers_after_training, case=case)
    again = on(row, buffers_after_training, case=case)
    for one, other in zip(plain, again, strict=True):
        assert one and one.keys() == other.keys()
        for name, value in one.items():
            assert relative(other[name], value) <= 1e-6, name


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_running_statistics_move_once_an_update(recompute):
    case = Case(norm="batch", steps=STEPS)
    row = Row(engine="single", world=1, accumulation=2, recompute=recompute)
    counts = {
        name: int(value)
        for name, value in buffers_after_training(case, row, d_steps=2).items()
        if name.endswith("num_batches_tracked")
    }
    assert {count for name, count in counts.items() if name.startswith("generator")} == {STEPS}
    assert {count for name, count in counts.items() if name.startswith("discriminator")} == {2 * STEPS}


# -- sync_batch is BatchNorm over the global batch --------------------------------------------


class TorchsBatchNorm(nn.BatchNorm2d):
    """torch's own, and what our layers take along behind it."""

    def forward(self, x: Tensor, slope: float | None = None, residual: Tensor | None = None) -> Tensor:
        out = super().forward(x)
        return activate(out if residual is None else out + residual, slope)


def plain_batch_norms(case: Case) -> tuple[nn.Module, nn.Module]:
    """The networks with torch's own BatchNorm."""
    built = parity.models(case)
    for module in (m for net in built for m in net.modules()):
        if isinstance(module, StepBatchNorm2d):
            module.__class__ = TorchsBatchNorm
    return built


def train_synchronised(case: Case, row: Row) -> dict[str, Any]:
    """As `train_row`, with the generator's running statistics."""
    kept = []
    build = parity.networks
    parity.networks = lambda *a: kept.append(build(*a)) or kept[0]
    try:
        found = train_row(case, row)
    finally:
        parity.networks = build
    return {**found, "buffers": dict(kept[0][0].module.named_buffers())}


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "row",
    [
        Row(engine="ddp"),
        Row(engine="fsdp"),
        Row(engine="deepspeed", stage=2),
        Row(engine="fsdp", recompute="full"),
    ],
    ids=str,
)
def test_sync_batch_is_batch_norm_over_the_global_batch(row):
    case = replace(SYNC, double=row.engine != "deepspeed")
    reference = train_plain(case, plain_batch_norms)
    ranks = on(row, train_synchronised, case=case)
    bound = 1e-12 if case.double else 1e-5
    assert max(differences(ranks[0], reference).values()) <= bound
    expected = dict(reference["generator"].named_buffers())
    for rank in ranks:
        for name, value in expected.items():
            assert relative(rank["buffers"][name], value) <= bound, name


# -- ranks agree -------------------------------------------------------------------------------


def statistics_before_and_after_averaging(row: Row) -> tuple[Tensor, Tensor]:
    norm = StepBatchNorm2d(4)
    norm(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(dist.get_rank())))
    commit_statistics(norm)
    before = torch.cat([norm.running_mean, norm.running_var])
    average_running_statistics(norm)
    return before, torch.cat([norm.running_mean, norm.running_var])


@pytest.mark.multiprocess
def test_averaging_makes_ranks_agree():
    ranks = on(Row(engine="ddp"), statistics_before_and_after_averaging)
    (first, after_first), (second, after_second) = ranks
    assert not torch.allclose(first, second)
    assert torch.equal(after_first, after_second)
    torch.testing.assert_close(after_first, (first + second) / 2)


def test_a_non_finite_pass_leaves_running_statistics_alone():
    norm = StepBatchNorm2d(4)
    before = {name: value.clone() for name, value in norm.state_dict().items() if "running" in name}
    norm(torch.full((1, 4, 8, 8), float("nan")))
    commit_statistics(norm)
    assert all(torch.equal(getattr(norm, name), value) for name, value in before.items())
    norm(torch.randn(1, 4, 8, 8) + 1)
    commit_statistics(norm)
    assert all(not torch.equal(getattr(norm, name), value) for name, value in before.items())
