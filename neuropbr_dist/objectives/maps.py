"""The four PBR maps as channel slices of one `(B, 8, H, W)` tensor."""

from __future__ import annotations

import torch
from torch import Tensor

ALBEDO = slice(0, 3)
"""RGB in [0, 1]."""
ROUGHNESS = slice(3, 4)
"""One channel in [0, 1]."""
METALLIC = slice(4, 5)
"""One channel in [0, 1]."""
NORMAL = slice(5, 8)
"""Unit XYZ in [-1, 1]; +Y up in the picture, +Z out of the surface."""

MAP_SLICES = {"albedo": ALBEDO, "roughness": ROUGHNESS, "metallic": METALLIC, "normal": NORMAL}


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays what it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def mean_per_map(channels: Tensor) -> dict[str, Tensor]:
    """`(B, 8)` values per channel -> name to `(B,)`, the mean over each map's channels."""
    return {name: channels[:, part].mean(1) for name, part in MAP_SLICES.items()}
