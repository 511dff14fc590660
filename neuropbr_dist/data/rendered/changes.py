"""Changes of a material on its way into a sample, each of them another material that there could be.

What is changed, and how far, are a row of numbers that is made on the host; the device does it to the maps. Nothing
here depends on the numbers' values but the result, so that a batch is changed at once and no step waits for the device.

A part of a material that is cut out doesn't repeat any more; all else keeps a tile a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.materials.channels import ALBEDO, METALLIC, NORMAL, ROUGHNESS
from neuropbr_dist.materials.decoding import linear_to_srgb, srgb_to_linear

Row = npt.NDArray[np.float32]

WAVE_COUNT = 16
PLACE, PART, TINT, ROUGHER, MASK = slice(0, 6), 6, slice(7, 10), 10, slice(11, 13)
WAVES = slice(13, 13 + 4 * WAVE_COUNT)
RELIEF = WAVES.stop
LEVEL, CONTRAST = RELIEF + 1, RELIEF + 2
OTHER_RELIEF = CONTRAST + 1
CHANGES = OTHER_RELIEF + 1
"""Numbers of a row.

PLACE    (a, b, c, d, e, f): pixel (i, j) is that of row a i + b j + c and column d i + e j + f, modulo the side
PART     side of the part that is shown, 1 for all
TINT     factors of the albedo's linear light
ROUGHER  added to the roughness
MASK     threshold and width of the partner's mask; 0 and 0: no partner
WAVES    what the mask is made of: (frequency along x, along y, amplitude, phase) of each
RELIEF   factor of the slopes
LEVEL    the roughness' new mean; 0: it stays
CONTRAST factor of what differs from the mean, where that is new
OTHER_RELIEF  1: the normals are the partner's, and nothing else is
"""

SMALLEST_PART = 0.5
SMOOTHEST, ROUGHEST, MOST_CONTRAST = 0.08, 0.95, 1.5
"""Limits of a `LEVEL` and, up and down, of a `CONTRAST`."""
MOST_WAVES_ACROSS = 5
# Rows and columns after the eight orientations of `augment`: (of i, of j, of the last place) for row, then column.
_TURNS = (
    ((1, 0, 0), (0, 1, 0)), ((0, 1, 0), (-1, 0, -1)), ((-1, 0, -1), (0, -1, -1)), ((0, -1, -1), (1, 0, 0)),
)  # fmt: skip


def unchanged() -> Row:
    """Return the row of a material that stays as it is."""
    row = np.zeros(CHANGES, np.float32)
    row[PLACE] = 1, 0, 0, 0, 1, 0
    row[PART] = 1
    row[TINT] = 1
    row[RELIEF] = 1
    return row


def place(orientation: int, down: int, right: int, side: int) -> npt.NDArray[np.float32]:
    """Return `PLACE` of a material in an orientation (see `augment`), then moved by whole pixels of `side`.

    What moves out at one edge comes in at the other.
    """
    (a, b, c), (d, e, f) = _TURNS[orientation % 4]
    if orientation >= 4:
        d, e, f = -d, -e, -1 - f
    rows = a, b, (c - a * down - b * right) % side
    columns = d, e, (f - d * down - e * right) % side
    return np.array([*rows, *columns], np.float32)


def mask(draws: Iterator[float]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return `MASK` and `WAVES` of a partner that takes about half of the place, in smooth blots of any size."""
    threshold, width = 1.2 * next(draws) - 0.6, 0.15 + 1.35 * next(draws) ** 2
    waves = np.empty((WAVE_COUNT, 4))
    for wave in waves:
        fx, fy = (math.floor((2 * MOST_WAVES_ACROSS + 1) * next(draws)) - MOST_WAVES_ACROSS for _ in range(2))
        wave[:] = fx, fy, 1 / max(1.0, math.hypot(fx, fy)), 2 * math.pi * next(draws)
    waves[:, 2] *= math.sqrt(2 / np.square(waves[:, 2]).sum())  # a field of variance 1
    return np.array([threshold, width]), waves.ravel()


# -- on the device ---------------------------------------------------------------------------


def change(maps: Tensor, changes: Tensor, partners: Tensor | None, parts: bool) -> Tensor:
    """Return changed maps.

    Args:
        maps: (B, 8, S, S) as `materials.decoding.decode_maps` gives them.
        changes: (B, CHANGES) float32.
        partners: like `maps`; None: no row takes anything from one.
        parts: whether a row shows a part.
    """
    if partners is not None:
        maps = with_relief_of(partners, mixed(maps, partners, changes), changes)
    maps = moved(maps, changes)
    if parts:
        maps = part_of(maps, changes)
    return coloured(raised(maps, changes), changes)


def mixed(maps: Tensor, partners: Tensor, changes: Tensor) -> Tensor:
    """Return mixtures: partners where the mask is 1, the materials where it is 0, and all between at its edges."""
    share = mask_of(changes, maps.shape[-1]).to(maps.dtype)
    # What isn't mixed stays as it is to the bit, whatever else is in the batch.
    is_mixed = changes[:, MASK.stop - 1, None, None, None] > 0
    return torch.where(is_mixed, unit_normals(torch.lerp(maps, partners, share)), maps)


def with_relief_of(partners: Tensor, maps: Tensor, changes: Tensor) -> Tensor:
    """Return maps, those with `OTHER_RELIEF` with their partners' normals."""
    other = changes[:, OTHER_RELIEF, None, None, None] > 0
    normals = torch.where(other, partners[:, NORMAL], maps[:, NORMAL])
    return torch.cat([maps[:, : NORMAL.start], normals], dim=1)


def mask_of(changes: Tensor, side: int) -> Tensor:
    """Return the partner's share at each pixel, (B, 1, side, side) from 0 to 1: a sum of waves that tiles, cut off."""
    frequency_x, frequency_y, amplitude, phase = changes[:, WAVES].unflatten(1, (WAVE_COUNT, 4)).unbind(2)
    turns = (torch.arange(side, device=changes.device, dtype=changes.dtype) + 0.5) * (2 * math.pi / side)
    x = frequency_x[:, None] * turns[:, None] + phase[:, None]  # (B, side, waves)
    y = frequency_y[:, None] * turns[:, None]
    # cos(x + y), summed over the waves: one product of small matrices.
    across = torch.cat([x.cos(), -x.sin()], dim=2)
    down = torch.cat([y.cos(), y.sin()], dim=2) * torch.cat([amplitude, amplitude], dim=1)[:, None]
    threshold, width = changes[:, MASK, None, None].unbind(1)
    field = ((down @ across.mT - threshold) / width.clamp(min=1e-6) + 0.5).clamp(0, 1)
    return (field * field * (3 - 2 * field) * (width > 0))[:, None]


def moved(maps: Tensor, changes: Tensor) -> Tensor:
    """Return maps turned and moved by whole pixels: every value is one of theirs. Normals turn along."""
    side = maps.shape[-1]
    a, b, c, d, e, f = (number[:, None, None] for number in changes[:, PLACE].round().long().unbind(1))
    at = torch.arange(side, device=maps.device)
    i, j = at[:, None], at[None, :]
    source = (a * i + b * j + c) % side * side + (d * i + e * j + f) % side
    taken = maps.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, maps.shape[1], -1)).view_as(maps)
    x, y, z = taken[:, NORMAL].unbind(1)
    turned = torch.stack([e * x - b * y, a * y - d * x, z], dim=1)  # y points up, rows count down
    return torch.cat([taken[:, : NORMAL.start], turned], dim=1)


def part_of(maps: Tensor, changes: Tensor) -> Tensor:
    """Return the middle part of each, enlarged to the whole. Slopes stay what they are, so normals do."""
    side = maps.shape[-1]
    centres = (2 * torch.arange(side, device=maps.device, dtype=maps.dtype) + 1) / side - 1
    across = changes[:, PART, None, None].to(maps.dtype) * centres[None, None].expand(-1, side, -1)
    grid = torch.stack([across, across.mT], dim=-1)
    enlarged = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    return torch.where(changes[:, PART, None, None, None] < 1, unit_normals(enlarged), maps)


def raised(maps: Tensor, changes: Tensor) -> Tensor:
    """Return maps of another relief: the same heights, all this many times as high. Normals stay unit vectors."""
    factor = changes[:, RELIEF, None, None, None].to(maps.dtype)
    x, y, z = maps[:, NORMAL].split(1, dim=1)
    steeper = F.normalize(torch.cat([factor * x, factor * y, z], dim=1), dim=1, eps=1e-6)
    normals = torch.where(factor == 1, maps[:, NORMAL], steeper)
    return torch.cat([maps[:, : NORMAL.start], normals], dim=1)


def coloured(maps: Tensor, changes: Tensor) -> Tensor:
    """Return maps of another tint and roughness; both stay in [0, 1]."""
    tint = changes[:, TINT, None, None].to(maps.dtype)
    tinted = linear_to_srgb((srgb_to_linear(maps[:, ALBEDO]) * tint).clamp(max=1))
    albedo = torch.where(tint == 1, maps[:, ALBEDO], tinted)
    rougher = changes[:, ROUGHER, None, None, None].to(maps.dtype)
    level, contrast = (changes[:, at, None, None, None].to(maps.dtype) for at in (LEVEL, CONTRAST))
    own = maps[:, ROUGHNESS]
    other = level + contrast * (own - own.mean((2, 3), keepdim=True))
    roughness = (torch.where(level > 0, other, own) + rougher).clamp(0, 1)
    return torch.cat([albedo, roughness, maps[:, METALLIC], maps[:, NORMAL]], dim=1)


def unit_normals(maps: Tensor) -> Tensor:
    """Return maps whose normals are unit vectors again."""
    return torch.cat([maps[:, : NORMAL.start], F.normalize(maps[:, NORMAL], dim=1, eps=1e-6)], dim=1)
