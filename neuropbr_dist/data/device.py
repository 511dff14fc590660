"""From uint8 to the floats the networks see, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from neuropbr_dist.config import TransformConfig
from neuropbr_dist.data.augment import turn_maps, turn_views
from neuropbr_dist.data.batch import DeviceBatch, MicroBatch
from neuropbr_dist.kernels import beside
from neuropbr_dist.materials.channels import decode
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.materials.rectify import rectify, turn_cameras


def normalise_views(views: Tensor, transform: TransformConfig, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (..., 3, H, W) -> (x / 255 - mean) / std."""
    mean, std = (beside(views, stat, dtype)[:, None, None] for stat in (transform.mean, transform.std))
    return (decode(views.to(dtype)) - mean) / std


def to_device(
    batch: MicroBatch,
    samples: int,
    transform: TransformConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> DeviceBatch:
    """Copy (asynchronously from pinned memory), then turn, convert and, with cameras, rectify.

    Args:
        samples: in the whole global batch, over all ranks and micro-batches.
    """
    views = batch.views.to(device, non_blocking=True)
    maps = batch.maps.to(device, non_blocking=True)
    cameras = batch.cameras
    if any(batch.orientations):
        views = torch.stack([turn_views(*one) for one in zip(views, batch.orientations, strict=True)])
        maps = torch.stack([turn_maps(*one) for one in zip(maps, batch.orientations, strict=True)])
        if cameras is not None:
            cameras = torch.stack(
                [turn_cameras(*one) for one in zip(cameras, batch.orientations, strict=True)]
            )
    weight = batch.weight.to(device, dtype, non_blocking=True) / samples
    normalised = normalise_views(views, transform, dtype)
    if cameras is not None:
        normalised = rectify(normalised, cameras, maps.shape[-1])
    return DeviceBatch(normalised, decode_maps(maps, dtype), weight)


def shown(views: Tensor, transform: TransformConfig) -> Tensor:
    """The pictures in a device batch, for a person: uint8 (..., 3, H, W), black where a view doesn't show the place.

    Args:
        views: (..., 3 or 7, H, W) as `to_device` makes them.
    """
    mean, std = (beside(views, stat)[:, None, None] for stat in (transform.mean, transform.std))
    pictures = views[..., :3, :, :] * std + mean
    if views.shape[-3] > 3:
        pictures = pictures * views[..., 3:4, :, :]
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8)
