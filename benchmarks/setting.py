"""Where steps are measured: the set-up of a run, on this rank's device, inside its process group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from neuropbr_dist.cluster import detect, pick_device, process_group
from neuropbr_dist.commands.train import config_of
from neuropbr_dist.config import with_fields
from neuropbr_dist.data.sources import BUILTIN_SIZE
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.facts import device_name
from neuropbr_dist.training.setup import SampleFacts, Setup, set_up

ONE_MICRO_BATCH = {"global_batch_size": None}
"""`training.batch_size` samples a rank and step."""


@contextmanager
def setting(words: Sequence[str], device: str | None = None) -> Iterator[Setup]:
    """The set-up that the words of `launch/train.py` mean on this rank, inside the process group if one is needed.

    Args:
        device: in place of `training.device`.

    Raises:
        UserError: words or a configuration that training would refuse.
    """
    cfg, env = with_fields(config_of(words), training=ONE_MICRO_BATCH), detect()
    place = pick_device(device or cfg.training.device, env)
    setup = set_up(cfg, env, place, SampleFacts(side=cfg.data.image_size or BUILTIN_SIZE))
    group = process_group(env, place, cfg.training.timeout_minutes)
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
    """The current CUDA device.

    Raises:
        UserError: there is none; `what` needs it.
    """
    if not torch.cuda.is_available():
        raise UserError(f"launch/benchmark.py {what} needs a CUDA device; there is none")
    return torch.device("cuda", torch.cuda.current_device())
