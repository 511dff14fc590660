"""Where steps are measured: a training configuration, this rank's device, its process group; and where figures go."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neuropbr_dist.cluster import Environment, detect, pick_device, process_group
from neuropbr_dist.config import TrainConfig
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.engines import engine_of
from neuropbr_dist.training.facts import device_name, versions

NATIVE_SIZE = 2048  # px, where the configuration names none


@dataclass(frozen=True)
class Setting:
    """What the networks of a measurement are built from."""

    cfg: TrainConfig
    """Resolved; `training.batch_size` samples a rank and step."""
    env: Environment
    device: torch.device

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.cfg.data.image_size or NATIVE_SIZE

    def __str__(self) -> str:
        engine, world = engine_of(self.cfg, self.env), self.env.world_size
        return f"{engine} on {world} x {device_name(self.device)}, torch {torch.__version__}, {self.size} px"

    def say(self, line: str) -> None:
        """Print it, on rank 0."""
        if self.env.rank == 0:
            print(line, flush=True)


@contextmanager
def setting(
    cfg: TrainConfig, needs_gpu: str | None = None, env: Environment | None = None
) -> Iterator[Setting]:
    """Yield this rank's place for `cfg`, inside the process group if one is needed.

    Args:
        needs_gpu: the measurement, if it is one of a GPU.
        env: this rank among the others; None: as its launcher says.

    Raises:
        UserError: no such device, or none that the measurement needs; engines that can't be.
    """
    if needs_gpu:
        need_gpu(needs_gpu)
    env = env or detect()
    device = pick_device(cfg.training.device, env)
    if needs_gpu and device.type != "cuda":
        raise UserError(
            f"launch/benchmark.py {needs_gpu} needs a CUDA device, not training.device = {device}"
        )
    torch.use_deterministic_algorithms(cfg.training.deterministic)
    engines = {engine_of(cfg, env, part) for part in ("generator", "discriminator")}
    needs_group = env.distributed or engines != {"single"}
    with process_group(env, device, cfg.training.timeout_minutes) if needs_group else nullcontext():
        yield Setting(cfg, env, device)


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
