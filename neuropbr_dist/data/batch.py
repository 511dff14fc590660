"""A micro-batch, on the host as uint8 and on the device as floats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuropbr_dist.materials.relighting import Relighting, from_above


class Rendering(NamedTuple):
    """Recipe for the views of B samples: what the device does to their maps before a network sees views of them."""

    scenes: Tensor  # (B, 3, SCENE) float32, see `materials.scene.encode_scene`
    cameras: Tensor  # (B, 3, 14) float32: the true ones
    keys: Tensor  # (B, 3) int64, of the noise in each pixel
    changes: Tensor | None = None
    """(B, CHANGES) float32, see `data.rendered.changes`; None: materials stay as they are."""
    partners: Tensor | None = None
    """(B, 8, H, W) uint8: what mixtures are mixed with; None: there is none."""
    parts: bool = False
    """Whether a sample shows a part of its material."""
    dirty: bool = False
    """Whether a scene is dirty."""

    def to(self, device: torch.device) -> Rendering:
        """Return it on a device, without waiting for it."""
        return Rendering(*moved(self, device))


class MicroBatch(NamedTuple):
    """Samples as they leave the loader."""

    views: Tensor | None  # (B, 3, 3, H, W) uint8; None: they are to be rendered
    maps: Tensor  # (B, 8, H, W) uint8
    weight: Tensor  # (B,) float32: 1, or 0 for filler
    keys: list[str]
    orientations: Sequence[int] = ()
    """Orientation in which the device is to show each sample, 0 to 7 (see `augment`); empty: none is turned."""
    cameras: Tensor | None = None
    """(B, 3, 14) float32, see `materials.plane.encode`; zeros where a view is missing. None: views stay as they are."""
    rendering: Rendering | None = None
    """Recipe for views of samples whose views aren't stored; None: they are."""
    relighting: Relighting | None = None
    """Lamps, eyes and squares of the maps that the rendering loss looks at; None: there is none."""


def filler(count: int, side: int, *, cameras: bool) -> MicroBatch:
    """Return a micro-batch of `count` black samples that weigh nothing."""
    views, maps = torch.zeros(count, 3, 3, side, side), torch.zeros(count, 8, side, side)
    known = torch.zeros(count, 3, 14) if cameras else None
    weight = torch.zeros(count)
    return MicroBatch(views.byte(), maps.byte(), weight, [], cameras=known, relighting=from_above(count))


def moved(parts: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Yield each part, tensors on a device, without waiting for it."""
    return (part.to(device, non_blocking=True) if isinstance(part, Tensor) else part for part in parts)


class DeviceBatch(NamedTuple):
    """A micro-batch ready for the step."""

    views: Tensor  # (B, 3, 3, H, W) float, normalised; (B, 3, 7, H, W) where cameras have rectified them
    maps: Tensor  # (B, 8, H, W) float: [0, 1], normals unit length
    weight: Tensor  # (B,) float: 1 / samples in the global batch, or 0 for filler
    relighting: Relighting | None = None
    """Lamps, eyes and squares of the turned maps that the rendering loss looks at; None: there is none."""
