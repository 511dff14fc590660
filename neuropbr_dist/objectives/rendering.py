"""The rendering loss: predicted and true maps look alike under the same lamps, from the same places.

Nine pictures of a square of the maps (`materials.relighting`), and L1 of log(radiance + 0.1), so that highlights don't
outshine the rest: Deschaintre et al. 2018, "Single-Image SVBRDF Capture with a Rendering-Aware Deep Network".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from neuropbr_dist.materials.decoding import linear_maps
from neuropbr_dist.materials.shading import reflected
from neuropbr_dist.materials.vectors import column, dot, unit

LARGEST_SQUARE = 256
"""Side, in pixels, of what is looked at of larger maps; another square at each step."""
_OFFSET = 0.1


def square_of(maps: Tensor, corners: Sequence[tuple[float, float]]) -> Tensor:
    """Return each sample's square of maps (B, 8, H, W): all of them up to `LARGEST_SQUARE`."""
    sides = [min(length, LARGEST_SQUARE) for length in maps.shape[-2:]]
    if sides == list(maps.shape[-2:]):
        return maps
    cut = []
    for sample, corner in zip(maps, corners, strict=True):
        top, left = (
            int(share * (length - side + 1))
            for share, length, side in zip(corner, maps.shape[-2:], sides, strict=True)
        )
        cut.append(sample[:, top : top + sides[0], left : left + sides[1]])
    return torch.stack(cut)


def rendering_loss(pred: Tensor, target: Tensor, lamps: Tensor, eyes: Tensor) -> Tensor:
    """Return the mean difference of `relit` pictures: squares of maps (B, 8, H, W) -> (B,).

    Args:
        lamps, eyes: (B, 9, 3), see `materials.relighting.Relighting`.
    """
    return (relit(pred, lamps, eyes) - relit(target, lamps, eyes)).abs().mean((1, 2, 3, 4))


def relit(maps: Tensor, lamps: Tensor, eyes: Tensor) -> Tensor:
    """Return log(radiance + 0.1) of maps under N lamps, (B, N, 3, H, W); white that faces its lamp shines with 1.

    Args:
        maps: (B, 8, H, W) sRGB albedo, roughness, metallic in [0, 1], normals.
        lamps, eyes: (B, N, 3), see `rendering_loss`.
    """
    points = _points(maps)
    to_lamp, to_eye = column(lamps) - points, unit(column(eyes) - points)
    nearer = _square(column(lamps)) / _square(to_lamp)  # than the middle, squared
    light = reflected(linear_maps(maps)[:, None], to_eye, unit(to_lamp))
    return torch.log(math.pi * nearer * light + _OFFSET)


def _square(vectors: Tensor) -> Tensor:
    return dot(vectors, vectors)


def _points(like: Tensor) -> Tensor:
    """Return the pixels' places (3, H, W) in the frame of lamps and eyes."""
    height, width = like.shape[-2:]
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width * 2 - 1
    y = 1 - (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height * 2
    return torch.stack(torch.broadcast_tensors(x[None, :], y[:, None], torch.zeros_like(x)[None, :]))
