"""Arithmetic that a training step asks for, and the share of what its device could do in that time (MFU)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neuropbr_dist.config import TrainConfig
from neuropbr_dist.models import Discriminator, Generator, judged_channels, view_channels

SIDE_CUDA, SIDE_CPU = 8192, 512
"""Sides of the matrices that the ceiling is measured with: large enough to reach it, small enough to cost nothing."""


@dataclass(frozen=True)
class SampleFlops:
    """Floating-point operations of one forward pass of each network on one sample; a multiply-add counts as two."""

    generator: float
    discriminator: float

    def step(self, *, gan: bool, d_steps: int = 1) -> float:
        """Return the operations of one sample's share of a step, as the mathematics asks for: recomputation
        doesn't count.

        Backward is two forward passes' worth. The generator: 3. The discriminator: 3 on true and 3 on
        generated maps, 2 more in the generator's pass (its own weights get no gradient there). Each
        further update of the discriminator: one pass of the generator, 6 of its own.
        """
        if not gan:
            return 3 * self.generator
        return (3 + d_steps - 1) * self.generator + (8 + 6 * (d_steps - 1)) * self.discriminator


def sample_flops(cfg: TrainConfig, size: int) -> SampleFlops:
    """Return the operations counted by torch on the meta device, for pictures of `size` px; nothing is computed.

    `discriminator` is 0 where the configuration has none.
    """
    with torch.device("meta"), torch.no_grad():
        of_g = _counted(Generator(cfg.model), torch.empty(1, 3, view_channels(cfg.model), size, size))
        of_d = 0.0
        if cfg.model.use_gan:
            of_d = _counted(Discriminator(cfg.model), torch.empty(1, judged_channels(cfg.model), size, size))
    return SampleFlops(of_g, of_d)


def _counted(network: nn.Module, x: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        network(x)
    return float(counter.get_total_flops())


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return this device's own ceiling in FLOP/s: the fastest of a few products of square matrices.

    Args:
        dtype: that the run computes in.
    """
    side = SIDE_CUDA if device.type == "cuda" else SIDE_CPU
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    fastest = float("inf")
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * side**3 / fastest
