"""Predict a picture in overlapping tiles and blend them, for sizes above memory.

What it changes: each tile is predicted as if it were the whole picture. Attention across the
views sees this tile's tokens only, so what the model infers from afar (overall brightness, the
kind of material) may differ from tile to tile, and group norm takes its statistics from the tile.
Blending hides the seams; it can't undo that. Take the largest tile that fits, best the size that
the model was trained at.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.errors import UserError
from neuropbr_dist.objectives import NORMAL

MIN_OVERLAP = 36
"""Pixels. Between two tiles that differ by d, the blend over m pixels changes its slope by at most
d (pi / m)^2 / 2 a pixel; for maps in [0, 1] that is below 1/255 from m = 36 on: no visible edge."""


def check_tiling(tile: int, overlap: int, multiple: int) -> None:
    """Raise a UserError unless tiles of these sizes can be predicted and blended without a seam."""
    smallest = -(-(MIN_OVERLAP + multiple) // multiple) * multiple
    if tile % multiple or tile < smallest:
        raise UserError(f"--tile {tile}; allowed: multiples of {multiple} px from {smallest} on")
    if not MIN_OVERLAP <= overlap <= tile - multiple:
        raise UserError(
            f"--overlap {overlap}; allowed: {MIN_OVERLAP} to {tile - multiple} with --tile {tile}"
        )


def starts(size: int, tile: int, overlap: int, multiple: int) -> list[int]:
    """Return the first pixels of the tiles along one side, evenly spread, at multiples of the encoder's stride.

    Args:
        size, tile: multiples of `multiple`, `tile <= size`.
        overlap: least number of pixels that neighbours share.
    """
    span, step = (size - tile) // multiple, (tile - overlap) // multiple
    gaps = math.ceil(span / step)
    return [0] + [i * span // gaps * multiple for i in range(1, gaps + 1)]


def window(tile: int, overlap: int) -> Tensor:
    """Return weights (tile,) of a tile along one side: sin^2 ramps over `overlap` pixels, above 0, at most 1.

    Two neighbours that share exactly `overlap` pixels add up to 1 where the ramps don't meet.
    """
    inside = torch.minimum(torch.arange(tile), torch.arange(tile).flip(0)) + 0.5
    return torch.sin((inside / overlap).clamp(max=1) * math.pi / 2).square()


def predict_tiles(
    forward: Callable[[Tensor], Tensor], views: Tensor, tile: int, overlap: int, multiple: int
) -> Tensor:
    """Return maps (..., 8, H, W) float32 on the CPU, blended from tiles; blended normals are made unit length again.

    Args:
        forward: views (..., 3, C, tile, tile) -> maps (..., 8, tile, tile).
        views: (..., 3, C, H, W); H and W at least `tile`.
    """
    height, width = views.shape[-2:]
    ramp = window(tile, overlap)
    weights = ramp[:, None] * ramp
    blended, total = torch.zeros(*views.shape[:-4], 8, height, width), torch.zeros(height, width)
    for y in starts(height, tile, overlap, multiple):
        for x in starts(width, tile, overlap, multiple):
            part = (..., slice(y, y + tile), slice(x, x + tile))
            blended[part] += forward(views[part]).float().cpu() * weights
            total[part] += weights
    blended /= total
    normals = blended[..., NORMAL, :, :]
    normals[:] = F.normalize(normals, dim=-3, eps=1e-6)
    return blended
