"""A micro-batch, on the host as uint8 and on the device as floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neuropbr_dist.materials.relighting import Relighting, from_above


class MicroBatch(NamedTuple):
    """Samples as they leave the loader."""

    views: Tensor  # (B, 3, 3, H, W) uint8
    maps: Tensor  # (B, 8, H, W) uint8
    weight: Tensor  # (B,) float32: 1, or 0 for filler
    keys: list[str]
    orientations: Sequence[int] = ()
    """How the device is to turn each sample (see `augment`); empty: not at all."""
    cameras: Tensor | None = None
    """(B, 3, 14) float32, see `materials.plane.encode`; zeros where a view is missing. None: views stay as they are."""
    relighting: Relighting | None = None
    """What the rendering loss looks at; None: there is none."""


def filler(count: int, side: int, *, cameras: bool) -> MicroBatch:
    """Return a micro-batch of `count` black samples that weigh nothing."""
    views, maps = torch.zeros(count, 3, 3, side, side), torch.zeros(count, 8, side, side)
    known = torch.zeros(count, 3, 14) if cameras else None
    weight = torch.zeros(count)
    return MicroBatch(views.byte(), maps.byte(), weight, [], cameras=known, relighting=from_above(count))


class DeviceBatch(NamedTuple):
    """A micro-batch ready for the step."""

    views: Tensor  # (B, 3, 3, H, W) float, normalised; (B, 3, 7, H, W) where cameras have rectified them
    maps: Tensor  # (B, 8, H, W) float: [0, 1], normals unit length
    weight: Tensor  # (B,) float: 1 / samples in the global batch, or 0 for filler
    relighting: Relighting | None = None
    """What the rendering loss looks at, of the turned maps."""
