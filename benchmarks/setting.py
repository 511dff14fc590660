"""Where steps are measured: the set-up of a run, on this rank's device, inside its process group; where figures go."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from neuropbr_dist.cluster import Environment, detect, pick_device, process_group
from neuropbr_dist.config import TrainConfig, with_fields
from neuropbr_dist.data.sources import BUILTIN_SIZE
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.facts import device_name, versions
from neuropbr_dist.training.setup import SampleFacts, Setup, set_up

ONE_MICRO_BATCH = {"global_batch_size": None}
"""`training.batch_size` samples a rank and step."""


@contextmanager
def setting(
    cfg: TrainConfig, needs_gpu: str | None = None, env: Environment | None = None
) -> Iterator[Setup]:
    """Yield the set-up of `cfg` on this rank, inside the process group if one is needed.

    Args:
        needs_gpu: the measurement, if it is one of a GPU.
        env: this rank among the others; None: as its launcher says.

    Raises:
        UserError: no such device, or none that the measurement needs; or training would refuse `cfg`.
    """
    if needs_gpu:
        need_gpu(needs_gpu)
    if cfg.training.stages:
        raise UserError("training.stages: what is measured has one side and one batch; name those of a stage")
    cfg, env = with_fields(cfg, training=ONE_MICRO_BATCH), env or detect()
    device = pick_device(cfg.training.device, env)
    if needs_gpu and device.type != "cuda":
        raise UserError(
            f"launch/benchmark.py {needs_gpu} needs a CUDA device, not training.device = {device}"
        )
    torch.use_deterministic_algorithms(cfg.training.deterministic)
    setup = set_up(cfg, env, device, SampleFacts(side=cfg.data.image_size or BUILTIN_SIZE))
    group = process_group(env, device, cfg.training.timeout_minutes)
    with group if setup.needs_process_group else nullcontext():
        yield setup


def changed(setup: Setup, room: int | None = None, **training: Any) -> Setup:
    """Return the set-up with other values in fields of `training`.

    Args:
        room: bytes that the memory plan is to fit into.
    """
    cfg = with_fields(setup.cfg, training=training)
    return set_up(cfg, setup.env, setup.device, setup.samples, room)


def title(setup: Setup) -> str:
    """Return what is measured, for a table's head."""
    where = f"{setup.engine} on {setup.env.world_size} x {device_name(setup.device)}"
    return f"{where}, torch {torch.__version__}, {setup.samples.side} px"


def say(setup: Setup, line: str) -> None:
    """Print it, on rank 0."""
    if setup.env.rank == 0:
        print(line, flush=True)


def need_gpu(what: str) -> torch.device:
    """Return the current CUDA device.

    Raises:
        UserError: there is none; `what` needs it.
    """
    if not torch.cuda.is_available():
        raise UserError(f"launch/benchmark.py {what} needs a CUDA device; there is none")
    return torch.device("cuda", torch.cuda.current_device())


def write_figures(out: Path | None, found: Mapping[str, Any]) -> None:
    """Write figures as JSON, where asked, on rank 0: with the versions and the device they hold for."""
    if out is not None and os.environ.get("RANK", "0") == "0":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        facts = {"versions": versions(), "device": device_name(device)}
        out.write_text(json.dumps({**facts, **found}, indent=1) + "\n")
