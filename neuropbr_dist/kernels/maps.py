"""From the heads' raw channels to maps in their ranges."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.kernels.dispatch import channels_last, full_precision, usable

SMALLEST_LENGTH = 1e-6  # of a normal before it is made a unit vector
STEEPEST = 3.0  # slope of a normal given by slopes: 72 degrees from straight up along x or y


def plain_activate_maps(raw: Tensor) -> Tensor:
    """Return what `activate_maps` does, without a kernel."""
    raw = full_precision(raw)
    normal = raw[:, 5:]
    if normal.shape[1] == 2:
        normal = torch.cat([STEEPEST * torch.tanh(normal), torch.ones_like(normal[:, :1])], dim=1)
    normal = F.normalize(normal, dim=1, eps=SMALLEST_LENGTH)
    return torch.cat([torch.sigmoid(raw[:, :5]), normal], dim=1)


def activate_maps(raw: Tensor) -> Tensor:
    """Turn raw heads into albedo, roughness, metallic in [0, 1] and unit normals (B, 8, H, W), float32 at least.

    Args:
        raw: (B, 8, H, W), the normal of any length, or (B, 7, H, W) with (a, b) for the normal that is
            (3 tanh a, 3 tanh b, 1) but for its length (Material Palette 2024): always out of the surface.
    """
    if raw.shape[1] == 7:
        return plain_activate_maps(raw)
    return ActivateMaps.apply(raw) if usable(raw) else plain_activate_maps(raw)


class ActivateMaps(torch.autograd.Function):
    """One pass each way; the maps come out a plane a channel, as losses and files want them."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor) -> Tensor:
        from neuropbr_dist.kernels.maps_triton import activate

        raw = channels_last(raw)
        ctx.save_for_backward(raw)
        return activate(raw, SMALLEST_LENGTH)

    @staticmethod
    def backward(ctx: Any, dmaps: Tensor) -> Tensor:  # type: ignore[override]
        from neuropbr_dist.kernels.maps_triton import activate_gradient

        (raw,) = ctx.saved_tensors
        return activate_gradient(dmaps.contiguous(), raw, SMALLEST_LENGTH)
