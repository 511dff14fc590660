"""Save on one engine, resume on another. All functions run on every rank of their row's world.

A run of four steps is saved after the second and goes on without interruption: that is the
reference. A resumed run starts from other weights, so all it knows is what was loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropbr_dist.checkpoint import open_newest, save, step_name
from neuropbr_dist.parallel import Network, NetworkSetup, build_network, change_network
from neuropbr_dist.parallel.sync_batch import average_running_statistics
from neuropbr_dist.training.ema import WeightAverage, decay_at
from neuropbr_dist.training.state import Progress, restore, saved_fragments, snapshot
from neuropbr_dist.training.step import gan_step
from tests.support import parity
from tests.support.parity import (
    Row,
    norm_of,
    objective,
    over_ranks,
    put_together,
    rank_batch,
    samples,
    whole_state,
)

SAVED_AFTER = 2


@dataclass(frozen=True, kw_only=True)
class Case(parity.Case):
    """What is trained; see `tests.support.parity`."""

    steps: int = 4
    gan_from: int = 0
    """Step, counted from 0, at which the adversarial losses begin."""
    bf16: bool = False
    """ZeRO computes in bfloat16 copies of its float32 masters."""
    ema_decay: float | None = None
    """As `training.ema_decay`."""
    then: parity.Case | None = None
    """Another stage, with another side and batch, that begins at the save; None: the run goes on as before."""


def setups(case: parity.Case, row: Row, *, bf16: bool) -> NetworkSetup:
    """How both networks are spread and computed."""
    ds_config = parity.ds_config(case, row) | ({"bf16": {"enabled": True}} if bf16 else {})
    made = replace(parity.setup_of(case, row, row.engine), dtype=None, recompute="none", compile_blocks=False)
    return replace(made, ds_config=ds_config if row.engine == "deepspeed" else None)


def networks(case: Case, row: Row, stage: parity.Case | None = None) -> dict[str, Network]:
    generator, discriminator = parity.models(case)
    plan = setups(stage or case, row, bf16=case.bf16)
    built = {"generator": generator, "discriminator": discriminator}
    return {part: build_network(module, torch.device("cpu"), plan) for part, module in built.items()}


def change_stage(case: Case, row: Row, nets: dict[str, Network]) -> None:
    """From the case's first stage to its second."""
    if case.then is not None:
        before, after = (setups(stage, row, bf16=case.bf16) for stage in (case, case.then))
        for network in nets.values():
            change_network(network, before, after)


def train_and_save(case: Case, row: Row, folder: Path) -> dict[str, Any]:
    """The whole run; what follows the save is reported (rank 0 has the state)."""
    nets = networks(case, row)
    ema = average_of(case, nets)
    train(case, row, nets, range(SAVED_AFTER), ema)
    state = snapshot(Progress(step=SAVED_AFTER), nets)
    save(folder, step_name(SAVED_AFTER), saved_fragments(nets, ema), state, "")
    change_stage(case, row, nets)
    return go_on(case, row, nets, ema)


def average_of(case: Case, nets: dict[str, Network]) -> WeightAverage | None:
    return None if case.ema_decay is None else WeightAverage(nets["generator"], case.ema_decay)


def resume(case: Case, row: Row, folder: Path, drop: str = "") -> dict[str, Any]:
    """A new run from the newest checkpoint in `folder` to the end.

    Args:
        drop: lose this on the way: `step`, `exp_avg` or `exp_avg_sq`.
    """
    nets = networks(replace(case, seed=case.seed + 1), row, case.then)
    ema = average_of(case, nets)
    checkpoint = open_newest(folder)
    assert checkpoint is not None
    with checkpoint:
        progress = restore(checkpoint, nets, ema)
    assert progress.step == SAVED_AFTER
    for part, network in nets.items() if drop else ():
        for shard in network.fragments():
            if shard.name.startswith(f"{drop}/"):
                shard.data.zero_()
        lost = {"step": 0.0} if drop == "step" else {}
        network.loaded(progress.counters[part] | lost)
    return go_on(case, row, nets, ema)


def go_on(case: Case, row: Row, nets: dict[str, Network], ema: WeightAverage | None) -> dict[str, Any]:
    """From the save to the end: records of the steps, and on rank 0 outputs before and state after them."""
    outputs = {f"output/{part}": value for part, value in forward(case, nets).items()}
    if ema is not None:
        with ema.swapped_in():
            outputs["output/average"] = forward(case, nets)["generator"]
    records = train(case, row, nets, range(SAVED_AFTER, case.steps), ema, case.then)
    for network in nets.values():
        average_running_statistics(network.module)
    state = whole_state(nets["generator"], nets["discriminator"], buffers=True)
    if ema is not None:
        state |= put_together((p.name, p.data, p.start, p.shape) for p in ema.fragments())
    return {"state": state | outputs, "records": records}


@torch.no_grad()
def forward(case: Case, nets: dict[str, Network]) -> dict[str, Tensor]:
    """What the networks give in eval mode, buffers and low-precision copies included."""
    inputs = dict(zip(("generator", "discriminator"), samples(case), strict=True))
    outputs = {}
    for part, network in nets.items():
        network.module.eval()
        outputs[part] = network(inputs[part][: case.batch]).double()
        network.module.train()
    return outputs


def train(
    case: Case,
    row: Row,
    nets: dict[str, Network],
    steps: Iterable[int],
    ema: WeightAverage | None = None,
    stage: parity.Case | None = None,
) -> list[dict[str, float]]:
    goal, records = objective(case), []
    for step in steps:
        d = nets["discriminator"] if step >= case.gan_from else None
        result = gan_step(
            nets["generator"], d, rank_batch(stage or case, row, step), goal, d_steps=case.d_steps
        )
        if ema is not None:
            ema.update(result.generator, 1 - decay_at(step + 1, case.ema_decay))
        record = {"G_loss": over_ranks(result.losses["G_loss"]), "G_norm": norm_of(result.generator)}
        if result.discriminator is not None:
            record |= {"D_loss": over_ranks(result.losses["D_loss"]), "D_norm": norm_of(result.discriminator)}
        records.append({"D_loss": 0.0, "D_norm": 0.0} | record)
    return records
