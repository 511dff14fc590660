"""Maps as picture files, errors as numbers, and a sample made small enough to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from neuropbr_dist.files import replacing
from neuropbr_dist.materials.channels import MAP_SLICES, NORMAL, as_stored
from neuropbr_dist.objectives.normals import normal_angle

LARGEST_SIDE = 384
"""Longer side in pixels of what is shown and kept of a sample, whatever the run's picture size."""


def maps_to_images(maps: Tensor) -> dict[str, np.ndarray]:
    """Convert maps `(8, H, W)`, floats -> name to uint8: albedo and normal HWC, roughness and metallic HW."""
    levels = maps_to_bytes(maps)
    return {name: channels_last(levels[part]) for name, part in MAP_SLICES.items()}


def maps_to_bytes(maps: Tensor) -> Tensor:
    """Convert maps `(8, H, W)`, floats -> uint8 on the CPU as files hold them, clipped to [0, 1]."""
    return (as_stored(maps.detach().float().cpu()).clamp(0, 1) * 255).round().to(torch.uint8)


def channels_last(picture: Tensor) -> np.ndarray:
    """Turn `(3, H, W)` -> HWC, `(1, H, W)` -> HW."""
    return np.ascontiguousarray(picture.permute(1, 2, 0).numpy() if len(picture) > 1 else picture[0].numpy())


def save_png(path: Path | str, image: np.ndarray) -> None:
    """Write uint8 HWC or HW as PNG; a reader sees the whole file or none."""
    with replacing(Path(path)) as part:
        Image.fromarray(image).save(part, format="PNG")


def error_maps(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Compare maps `(8, H, W)` -> name to error `(H, W)`: mean absolute error over channels, for normals degrees."""
    errors = {name: (pred[part] - target[part]).abs().mean(0) for name, part in MAP_SLICES.items()}
    return errors | {"normal": normal_angle(pred[None, NORMAL], target[None, NORMAL])[0]}


@dataclass(frozen=True)
class Look:
    """One sample as a person gets to see it: on the CPU, at most `LARGEST_SIDE` px a side."""

    key: str
    """The sample's name."""
    views: Tensor
    """(3, 3, h, w) uint8."""
    pred: Tensor
    """(8, h, w) float32, unit normals."""
    target: Tensor | None
    """(8, h, w) float32, unit normals; None where the true maps aren't known."""
    errors: dict[str, Tensor]
    """`error_maps` at full size, then made small: (h, w) a map. Empty without true maps."""

    def mean_errors(self) -> dict[str, float]:
        """Return the mean error of each map; for normals in degrees."""
        return {name: error.mean().item() for name, error in self.errors.items()}


@torch.no_grad()
def take_look(key: str, views: Tensor, pred: Tensor, target: Tensor | None) -> Look:
    """Make a sample small where it lies (2048² on a GPU: milliseconds), then copy it to the host.

    Args:
        views: `(3, 3, H, W)` uint8.
        pred, target: `(8, H, W)` float; normals in [-1, 1].
    """
    pred = pred.detach().float()
    target = None if target is None else target.detach().float()
    errors = {} if target is None else error_maps(pred, target)
    small_views = shrink(views.float()).round().clamp(0, 255).to(torch.uint8).cpu()
    return Look(
        key,
        small_views,
        shrink_maps(pred).cpu(),
        None if target is None else shrink_maps(target).cpu(),
        {name: shrink(error).cpu() for name, error in errors.items()},
    )


def shrink(pictures: Tensor) -> Tensor:
    """Shrink float pictures `(..., H, W)` to at most `LARGEST_SIDE` px a side: each pixel the mean of what
    it covers."""
    height, width = pictures.shape[-2:]
    longest = max(height, width)
    if longest <= LARGEST_SIDE:
        return pictures
    size = [max(1, round(side * LARGEST_SIDE / longest)) for side in (height, width)]
    small = F.interpolate(pictures.reshape(1, -1, height, width), size=size, mode="area")
    return small.reshape(*pictures.shape[:-2], *size)


def shrink_maps(maps: Tensor) -> Tensor:
    """Shrink maps `(8, H, W)` as `shrink` does; averaged normals are made unit length again."""
    small = shrink(maps)
    if small is maps:
        return maps
    return torch.cat([small[: NORMAL.start], F.normalize(small[NORMAL], dim=0, eps=1e-6)])
