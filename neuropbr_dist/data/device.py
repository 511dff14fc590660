"""From uint8 to the floats the networks see, on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.config import TransformConfig
from neuropbr_dist.data.augment import turn_maps, turn_views
from neuropbr_dist.data.batch import DeviceBatch, MicroBatch
from neuropbr_dist.materials.channels import NORMAL, decode, decode_normals


def normalise_views(views: Tensor, transform: TransformConfig, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (..., 3, H, W) -> (x / 255 - mean) / std."""
    mean = torch.tensor(transform.mean, dtype=dtype, device=views.device)[:, None, None]
    std = torch.tensor(transform.std, dtype=dtype, device=views.device)[:, None, None]
    return (decode(views.to(dtype)) - mean) / std


def decode_maps(maps: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (B, 8, H, W) -> albedo, roughness, metallic in [0, 1] and unit normals."""
    values = decode(maps.to(dtype))
    normal = F.normalize(decode_normals(values[:, NORMAL]), dim=1, eps=1e-6)
    return torch.cat([values[:, : NORMAL.start], normal], dim=1)


def to_device(
    batch: MicroBatch,
    samples: int,
    transform: TransformConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> DeviceBatch:
    """Copy (asynchronously from pinned memory), then turn and convert.

    Args:
        samples: in the whole global batch, over all ranks and micro-batches.
    """
    views = batch.views.to(device, non_blocking=True)
    maps = batch.maps.to(device, non_blocking=True)
    if any(batch.orientations):
        views = torch.stack([turn_views(*one) for one in zip(views, batch.orientations, strict=True)])
        maps = torch.stack([turn_maps(*one) for one in zip(maps, batch.orientations, strict=True)])
    weight = batch.weight.to(device, dtype, non_blocking=True) / samples
    return DeviceBatch(normalise_views(views, transform, dtype), decode_maps(maps, dtype), weight)
