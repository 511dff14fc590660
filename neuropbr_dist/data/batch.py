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
    """(B, 8, H, W) uint8: what samples are mixed with, or have the relief of; None: no sample has such a partner."""
    parts: bool = False
    """Whether a sample shows a part of its material."""
    dirty: bool = False
    """Whether a scene is dirty."""

    def to(self, device: torch.device) -> Rendering:
        """Return it on a device, without waiting for it."""
        return Rendering(*moved(self, device))


class Bands(NamedTuple):
    """Rows of views that are to be rectified: of each picture those that a strip of the map needs."""

    pixels: Tensor
    """(n,) uint8: the views' rows, (3, h, W) each, one after another."""
    rows: list[list[tuple[int, int]]]
    """The first row, and the one after the last, of each view of each sample."""

    def placed(self, side: int, device: torch.device) -> Tensor:
        """Return whole pictures (B, 3, 3, side, side) on a device, black where their rows aren't known."""
        pixels = self.pixels.to(device, non_blocking=True)
        views = pixels.new_zeros(len(self.rows), 3, 3, side, side)
        sizes = [3 * (last - first) * side for each in self.rows for first, last in each]
        pieces = iter(pixels.split(sizes))
        for sample, each in zip(views, self.rows, strict=True):
            for picture, (first, last) in zip(sample, each, strict=True):
                picture[:, first:last] = next(pieces).view(3, last - first, side)
        return views


class Mixture(NamedTuple):
    """Samples that show up in the place of a part of some of a micro-batch's, once all are rectified."""

    partners: MicroBatch
    """M others, of the same rows."""
    at: Tensor  # (M,) int64: the place in the micro-batch of each one that is mixed
    masks: Tensor  # (M, CHANGES) float32: `MASK` and `WAVES` of each, see `data.rendered.changes`


class MicroBatch(NamedTuple):
    """Samples as they leave the loader: whole ones, or the strips of them that a rank has (`rows`).

    H is then the strip's height. Of a sample that the device is to turn by a quarter, its columns are read: they lie
    (…, W, H) in the memory of (…, H, W).
    """

    views: Tensor | Bands | None
    """(B, 3, 3, H, W) uint8; bands: they are to be rectified to a strip; None: they are to be rendered."""
    maps: Tensor  # (B, 8, H, W) uint8; whole where views are to be rendered
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
    rows: tuple[int, int] | None = None
    """First row, and the one after the last, of the samples as the device shows them, that it is to give; None: all."""
    mixture: Mixture | None = None
    """Other samples that stored ones are mixed with; None: with none."""


def filler(count: int, side: int, *, cameras: bool, rows: tuple[int, int] | None = None) -> MicroBatch:
    """Return a micro-batch of `count` black samples that weigh nothing; `rows` as in a `MicroBatch`."""
    height = side if rows is None else rows[1] - rows[0]
    views = torch.zeros(count, 3, 3, side if cameras else height, side, dtype=torch.uint8)
    maps = torch.zeros(count, 8, height, side, dtype=torch.uint8)
    known = torch.zeros(count, 3, 14) if cameras else None
    return MicroBatch(
        views, maps, torch.zeros(count), [], cameras=known, relighting=from_above(count), rows=rows
    )


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
