"""A non-finite micro-batch of one rank: the update is skipped on all ranks alike, the run goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.training.step import GanStepResult, gan_step
from tests.support.distributed import run
from tests.support.parity import Case, Poisoned, Row, differences, networks, rank_batch, whole_state
from tests.support.plain_loop import train_plain

CASE = Case(steps=2)
ROWS = [
    Row(engine="single", world=1, accumulation=2),
    Row(engine="ddp", accumulation=2),
    Row(engine="fsdp", accumulation=2),
    Row(engine="fsdp", accumulation=2, offload=True),
    *(Row(engine="deepspeed", stage=stage, accumulation=2) for stage in range(4)),
    Row(engine="deepspeed", stage=2, accumulation=2, offload=True),
    Row(engine="deepspeed", stage=3, accumulation=2, offload=True),
    Row(engine="deepspeed", stage=3, accumulation=2, persist=10_000),
    Row(engine="fsdp", world=4, shard="node"),
]


def bad_views(batch: list[DeviceBatch]) -> list[DeviceBatch]:
    """NaN in one pixel of the first micro-batch."""
    views = batch[0].views.clone()
    views[0, 1, 2, 3, 4] = math.nan
    return [batch[0]._replace(views=views), *batch[1:]]


def flags(result: GanStepResult) -> tuple[bool, bool]:
    assert result.discriminator is not None
    return bool(result.generator.finite), bool(result.discriminator.finite)


def train_with_faults(case: Case, row: Row) -> dict[str, Any]:
    """A good step, a bad sample, a good step, then a fault in each network's loss."""
    g, d = networks(case, row)
    faulty = row.world == 1 or torch.distributed.get_rank() == row.world - 1
    found: dict[str, Any] = {}

    def step(name: str, batch: list[DeviceBatch], part: str = "") -> None:
        result = gan_step(g, d, batch, Poisoned(case, part if faulty else ""))
        found[name] = flags(result)
        found[f"state after {name}"] = whole_state(g, d)

    first, second = (rank_batch(case, row, i) for i in range(2))
    step("first", first)
    step("bad sample", bad_views(second) if faulty else second)
    step("second", second)
    step("bad generator loss", second, "generator")
    step("bad discriminator loss", second, "discriminator")
    return found


def moved(after: dict[str, Tensor], before: dict[str, Tensor]) -> set[str]:
    """Networks of which anything differs."""
    return {name.split("/")[0] for name in after if not torch.equal(after[name], before[name])}


@pytest.mark.multiprocess
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_bad_step_leaves_everything_as_it_was(row):
    case = replace(CASE, batch=8) if row.world == 4 else CASE
    ranks = [train_with_faults(case, row)] if row.world == 1 else run_faults(case, row)
    for rank in ranks:
        assert rank["first"] == rank["second"] == (True, True)
        assert rank["bad sample"] == (False, False)
        assert rank["bad generator loss"] == (False, True)
        assert rank["bad discriminator loss"] == (True, False)
    found = {name.removeprefix("state after "): state for name, state in ranks[0].items() if "state" in name}
    assert moved(found["bad sample"], found["first"]) == set()
    assert moved(found["bad generator loss"], found["second"]) == {"discriminator"}
    assert moved(found["bad discriminator loss"], found["bad generator loss"]) == {"generator"}

    reference = train_plain(case)
    good = {"state": found["second"], "records": reference["records"]}
    assert max(differences(good, reference).values()) <= 1e-5


def run_faults(case: Case, row: Row) -> list[dict[str, Any]]:
    return run(row.world, f"{__name__}:train_with_faults", case=case, row=row)
