"""FSDP2: what is reduced when, and meshes that can't be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch.distributed.tensor.debug import CommDebugMode

from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.errors import UserError
from neuropbr_dist.parallel import NetworkSetup
from neuropbr_dist.parallel.build import fsdp_mesh
from neuropbr_dist.training.step import gan_step
from tests.support.distributed import run
from tests.support.parity import ADAM, Case, Row, models, networks, objective, rank_batch

CASE = Case(steps=1, batch=8)


class Watched(list[DeviceBatch]):
    """Micro-batches; notes how often gradients were reduced before each is taken."""

    def __init__(self, batch: list[DeviceBatch], comms: CommDebugMode) -> None:
        super().__init__(batch)
        self.comms, self.reduced = comms, []

    def __iter__(self) -> Iterator[DeviceBatch]:
        for micro in super().__iter__():
            self.reduced.append(reductions(self.comms))
            yield micro


def reductions(comms: CommDebugMode) -> int:
    return sum(count for op, count in comms.get_comm_counts().items() if "reduce_scatter" in str(op))


def reductions_in_a_step(accumulation: int) -> list[int]:
    """Reduce-scatters so far, before each micro-batch and after the last one."""
    row = Row(engine="fsdp", accumulation=accumulation)
    g, d = networks(CASE, row)
    with CommDebugMode() as comms:
        batch = Watched(rank_batch(CASE, row, 0), comms)
        gan_step(g, d, batch, objective(CASE))
        return [*batch.reduced, reductions(comms)]


@pytest.mark.multiprocess
def test_gradients_are_reduced_on_the_last_micro_batch_only():
    units = sum(len(net.segments()) + 1 for net in models(CASE))
    for reduced in run(2, f"{__name__}:reductions_in_a_step", accumulation=1):
        assert reduced == [0, units]
    for reduced in run(2, f"{__name__}:reductions_in_a_step", accumulation=4):
        assert reduced[:4] == [0, 0, 0, 0]
        # The discriminator's inner blocks twice: real and fake maps are two passes through them.
        assert units <= reduced[4] <= 2 * units


def node_mesh(ranks_per_node: int) -> Any:
    plan = NetworkSetup(
        engine="fsdp", adam=ADAM, clip=None, dtype=None, recompute="none", compile_blocks=False,
        shard="node", ranks_per_node=ranks_per_node,
    )  # fmt: skip
    try:
        return tuple(fsdp_mesh("cpu", plan).mesh.shape)
    except UserError as error:
        return str(error)


@pytest.mark.multiprocess
def test_nodes_must_have_equally_many_ranks():
    assert run(2, f"{__name__}:node_mesh", ranks_per_node=1) == [(2, 1)] * 2
    (message, _) = run(2, f"{__name__}:node_mesh", ranks_per_node=3)
    assert "training.shard = node: 2 ranks don't divide into nodes of 3" in message


def held_elements() -> int:
    """Elements of parameters and moments that this rank holds."""
    g, _ = networks(CASE, Row(engine="fsdp"))
    return sum(shard.data.numel() for shard in g.fragments() if not shard.name.startswith("buffer/"))


@pytest.mark.multiprocess
def test_each_rank_holds_its_part_only():
    whole = 3 * sum(p.numel() for p in models(CASE)[0].parameters())
    held = run(2, f"{__name__}:held_elements")
    assert sum(held) == whole
    assert max(held) < 0.6 * whole
