"""What losses and metrics do with `(B, 8, H, W)` maps alike: full precision, a mean a map."""

from __future__ import annotations

import torch
from torch import Tensor

from neuropbr_dist.materials.channels import MAP_SLICES


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays what it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def mean_per_map(channels: Tensor) -> dict[str, Tensor]:
    """`(B, 8)` values per channel -> name to `(B,)`, the mean over each map's channels."""
    return {name: channels[:, part].mean(1) for name, part in MAP_SLICES.items()}
