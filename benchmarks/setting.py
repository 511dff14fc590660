"""Where steps are measured: a training configuration, this rank's device, its process group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from neuropbr_dist.cluster import Environment, detect, pick_device, process_group
from neuropbr_dist.commands.train import config_of
from neuropbr_dist.config import TrainConfig
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.engines import engine_of
from neuropbr_dist.training.facts import device_name

NATIVE_SIZE = 2048  # px, where the configuration names none


@dataclass(frozen=True)
class Setting:
    """What the networks of a measurement are built from."""

    cfg: TrainConfig
    """Resolved; `training.batch_size` samples a rank and step."""
    env: Environment
    device: torch.device
    size: int
    """Side of the pictures in pixels."""

    def __str__(self) -> str:
        engine, world = engine_of(self.cfg, self.env), self.env.world_size
        return f"{engine} on {world} x {device_name(self.device)}, torch {torch.__version__}, {self.size} px"

    def say(self, line: str) -> None:
        """Print it, on rank 0."""
        if self.env.rank == 0:
            print(line, flush=True)


@contextmanager
def setting(words: Sequence[str], device: str | None = None) -> Iterator[Setting]:
    """What the words of `launch/train.py` mean on this rank, inside the process group if one is needed.

    Args:
        device: in place of `training.device`.

    Raises:
        UserError: words or a configuration that training would refuse.
    """
    cfg, env = config_of(words), detect()
    place = pick_device(device or cfg.training.device, env)
    engines = {engine_of(cfg, env, part) for part in ("generator", "discriminator")}
    needs_group = env.distributed or engines != {"single"}
    with process_group(env, place, cfg.training.timeout_minutes) if needs_group else nullcontext():
        yield Setting(cfg, env, place, cfg.data.image_size or NATIVE_SIZE)


def need_gpu(what: str) -> torch.device:
    """The current CUDA device.

    Raises:
        UserError: there is none; `what` needs it.
    """
    if not torch.cuda.is_available():
        raise UserError(f"launch/benchmark.py {what} needs a CUDA device; there is none")
    return torch.device("cuda", torch.cuda.current_device())
