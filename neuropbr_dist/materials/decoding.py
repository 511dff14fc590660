"""From what files hold to linear light and back, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from neuropbr_dist.materials.channels import ALBEDO, NORMAL, decode, decode_normals
from neuropbr_dist.materials.vectors import unit


def decode_maps(maps: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uint8 maps (B, 8, H, W) as albedo, roughness, metallic in [0, 1] and unit normals."""
    values = decode(maps.to(dtype))
    return torch.cat([values[:, : NORMAL.start], unit(decode_normals(values[:, NORMAL]))], dim=1)


def linear_maps(maps: Tensor) -> Tensor:
    """Return maps (..., 8, H, W) as `decode_maps` gives them with linear albedo, as shading asks for it."""
    albedo, rest = maps[..., ALBEDO, :, :], maps[..., ALBEDO.stop :, :, :]
    return torch.cat([srgb_to_linear(albedo), rest], dim=-3)


def srgb_to_linear(value: Tensor) -> Tensor:
    """Return the IEC 61966-2-1 decoding of values in [0, 1]."""
    return torch.where(value <= 0.04045, value / 12.92, ((value.clamp_min(0.04) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(value: Tensor) -> Tensor:
    """Return the IEC 61966-2-1 encoding of values in [0, 1]."""
    curve = (
        1.055 * value.clamp_min(0.003) ** (1 / 2.4) - 0.055
    )  # the clamp keeps the unused branch's gradient finite
    return torch.where(value <= 0.0031308, value * 12.92, curve)
