"""Neither network gets gradients from the other's loss, on any engine.

Looked for in Adam's first moments: from zero they stay exactly zero without a
gradient, and later halve exactly (beta 0.5).
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from neuropbr_dist.training.step import gan_step
from tests.support.distributed import run
from tests.support.parity import Case, Row, networks, objective, rank_batch, whole_state

NO_D_LOSS = Case(w_d=0.0)
NO_G_LOSS = Case(w_maps=0.0, w_gan=0.0)

ROWS = [
    Row(engine="single", world=1, accumulation=2),
    Row(engine="ddp", accumulation=2, recompute="full"),
    Row(engine="fsdp", accumulation=2, recompute="full"),
    *(Row(engine="deepspeed", stage=stage, accumulation=2, recompute="full") for stage in range(4)),
    Row(engine="fsdp", accumulation=2, engine_d="ddp"),
    Row(engine="deepspeed", stage=3, accumulation=2, engine_d="ddp"),
    Row(engine="fsdp", world=4, shard="node"),
]


def moments_of_one_sided_steps(row: Row) -> list[dict[str, Tensor]]:
    """After a step in which only G has a loss, then one in which only D has."""
    g, d = networks(NO_D_LOSS, row)
    found = []
    for case in (NO_D_LOSS, NO_G_LOSS):
        gan_step(g, d, rank_batch(case, row, 0), objective(case), d_steps=2)
        state = whole_state(g, d)
        found.append({name: value for name, value in state.items() if "/exp_avg/" in name})
    return found


def only(part: str, moments: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value for name, value in moments.items() if name.startswith(part)}


@pytest.mark.multiprocess
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_no_gradient_crosses_over(row):
    ranks = [moments_of_one_sided_steps(row)] if row.world == 1 else crossed(row)
    only_g, only_d = ranks[0]
    assert all(value.abs().max() > 0 for value in only("generator", only_g).values())
    assert all(value.abs().max() == 0 for value in only("discriminator", only_g).values())
    assert all(value.abs().max() > 0 for value in only("discriminator", only_d).values())
    for name, value in only("generator", only_d).items():
        assert (value == 0.5 * only_g[name]).all(), name


def crossed(row: Row) -> list[Any]:
    return run(row.world, f"{__name__}:moments_of_one_sided_steps", row=row)
