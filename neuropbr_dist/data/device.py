"""Conversion of uint8 to the floats that the networks see, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from neuropbr_dist.config import TransformConfig
from neuropbr_dist.data.augment import turn_maps, turn_views
from neuropbr_dist.data.batch import Bands, DeviceBatch, MicroBatch, Mixture, Rendering, moved
from neuropbr_dist.data.rendered.changes import mask_of
from neuropbr_dist.data.rendered.renderer import Renderer
from neuropbr_dist.kernels import beside
from neuropbr_dist.materials.channels import decode
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.materials.rectify import rectify, turn_cameras
from neuropbr_dist.materials.relighting import Relighting


def normalise_views(views: Tensor, transform: TransformConfig, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 (..., 3, H, W) to (x / 255 - mean) / std, in `dtype`."""
    return standardise(decode(views.to(dtype)), transform)


def standardise(pictures: Tensor, transform: TransformConfig) -> Tensor:
    """Convert floats of [0, 1], (..., 3, H, W), to (x - mean) / std."""
    mean, std = (beside(pictures, stat)[:, None, None] for stat in (transform.mean, transform.std))
    return (pictures - mean) / std


def to_device(
    batch: MicroBatch,
    samples: int,
    transform: TransformConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    renderer: Renderer | None = None,
) -> DeviceBatch:
    """Copy (asynchronously from pinned memory), then turn or render, convert and, with cameras, rectify.

    What comes back has the batch's `rows` of views and maps.

    Args:
        samples: in the whole global batch, over all ranks and micro-batches.
        renderer: of samples whose views aren't stored; None: one that isn't compiled and knows no panoramas.
    """
    side = batch.maps.shape[-1]
    rows = batch.rows or (0, side)
    weight = batch.weight.to(device, dtype, non_blocking=True) / samples
    if batch.rendering is not None:
        views, maps = rendered(batch.maps, batch.rendering, renderer or Renderer(), device, dtype)
        maps, cameras = cut(maps, rows), batch.cameras
        normalised = standardise(views if cameras is not None else cut(views, rows), transform)
    else:
        views, maps, cameras = turned(batch, device)
        maps = decode_maps(maps, dtype)
        normalised = normalise_views(views, transform, dtype)
    if cameras is not None:
        normalised = rectify(normalised, cameras, side, rows)
    if batch.mixture is not None:
        others = to_device(batch.mixture.partners, samples, transform, device, dtype)
        normalised, maps = mixed(normalised, maps, batch.mixture, others, rows)
    relighting = None if batch.relighting is None else Relighting(*moved(batch.relighting, device))
    return DeviceBatch(normalised, maps, weight, relighting)


def mixed(
    views: Tensor, maps: Tensor, mixture: Mixture, others: DeviceBatch, rows: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return views (B, 3, 7, R, S) and maps (B, 8, R, S), in place, with those of `others` where the masks are.

    At each place one sample is whole, with its pictures, its light and its directions to the eye: what is between two
    samples no view could show.
    """
    at, masks = (there.to(views.device, non_blocking=True) for there in (mixture.at, mixture.masks))
    theirs = mask_of(masks, maps.shape[-1])[:, :, slice(*rows)] > 0.5
    maps[at] = torch.where(theirs, others.maps, maps[at])
    views[at] = torch.where(theirs[:, None], others.views, views[at])
    return views, maps


def cut(pictures: Tensor, rows: tuple[int, int]) -> Tensor:
    """Return rows of pictures (..., H, W), in memory of their own unless they are all."""
    return pictures[..., slice(*rows), :].contiguous()


def turned(batch: MicroBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return stored views and maps on the device, uint8, and their cameras, each sample in its orientation.

    Views that are to be rectified come back whole: any row may show one of the map's.
    """
    assert batch.views is not None
    maps, cameras = batch.maps.to(device, non_blocking=True), batch.cameras
    if isinstance(batch.views, Bands):
        views = batch.views.placed(maps.shape[-1], device)
    else:
        views = batch.views.to(device, non_blocking=True)
    if any(batch.orientations):
        views, maps = (
            torch.stack([turn(as_read(one, o), o) for one, o in zip(x, batch.orientations, strict=True)])
            for x, turn in ((views, turn_views), (maps, turn_maps))
        )
        if cameras is not None:
            cameras = torch.stack(
                [turn_cameras(*one) for one in zip(cameras, batch.orientations, strict=True)]
            )
    return views, maps, cameras


def as_read(pictures: Tensor, orientation: int) -> Tensor:
    """Return pictures (…, H, W) of a micro-batch as they were read; those to be turned by a quarter are (…, W, H)."""
    *channels, height, width = pictures.shape
    return pictures.view(*channels, width, height) if orientation % 2 else pictures


def rendered(
    maps: Tensor, rendering: Rendering, renderer: Renderer, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return rendered views, in [0, 1], and the maps that they show."""
    there = rendering.to(device)
    partners = None if there.partners is None else decode_maps(there.partners, dtype)
    maps, views = renderer(decode_maps(maps.to(device, non_blocking=True), dtype), partners, there)
    return views, maps


def shown(views: Tensor, transform: TransformConfig) -> Tensor:
    """Return a device batch's pictures for a person: uint8 (..., 3, H, W), black where a view doesn't show the place.

    Args:
        views: (..., 3 or 7, H, W) as `to_device` makes them.
    """
    mean, std = (beside(views, stat)[:, None, None] for stat in (transform.mean, transform.std))
    pictures = views[..., :3, :, :] * std + mean
    if views.shape[-3] > 3:
        pictures = pictures * views[..., 3:4, :, :]
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8)
