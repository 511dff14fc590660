"""Predicted and true maps shaded under the same lamps, seen from the same places: as a loss, and to compare by.

The loss: nine pictures of a square of the maps (`materials.relighting`), and L1 of log(radiance + 0.1), so that highlights don't
outshine the rest: Deschaintre et al. 2018, "Single-Image SVBRDF Capture with a Rendering-Aware Deep Network".
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuropbr_dist.materials.decoding import linear_maps
from neuropbr_dist.materials.shading import reflected
from neuropbr_dist.materials.vectors import column, dot, unit
from neuropbr_dist.objectives.ssim import ssim
from neuropbr_dist.strip import Strip

LARGEST_SQUARE = 256
"""Side, in pixels, of what is looked at of larger maps; another square at each step."""
LAMPS, EYE_AT = 16, 2.5
"""Number of lamps of `shaded_metrics`, and distance of its eye and lamps, in halves of the maps' side."""
_OFFSET = 0.1


def square_of(maps: Tensor, corners: Tensor, strip: Strip | None = None) -> Tensor:
    """Return each sample's square of maps (B, 8, H, W): all of them up to `LARGEST_SQUARE`.

    The host never learns where it lies: it would have to wait for the device, and what it launches could not be replayed.

    Args:
        corners: (B, 2), see `materials.relighting.Relighting`.
        strip: where this process holds a strip of the maps; the square comes back whole on every one.
    """
    count, begin = (1, 0) if strip is None else (strip.count, strip.rows(maps.shape[2] * strip.count)[0])
    for dim, length in ((2, maps.shape[2] * count), (3, maps.shape[3])):
        side = min(length, LARGEST_SQUARE)
        if side < length or (dim == 2 and count > 1):
            first = (corners[:, dim - 2] * (length - side + 1)).long()
            maps = _Moved.apply(maps, first - begin if dim == 2 else first, side, dim)
    return maps if strip is None else strip.gathered(maps).sum(0)


class _Moved(torch.autograd.Function):
    """See `_moved`. Its gradient is the same move back: no sum by atomics, and of the same order every time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, count: int, dim: int) -> Tensor:
        ctx.save_for_backward(first)
        ctx.dim, ctx.count = dim, x.shape[dim]
        return _moved(x, first, count, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (first,) = ctx.saved_tensors
        return _moved(gradient, -first, ctx.count, ctx.dim), None, None, None


def _moved(x: Tensor, first: Tensor, count: int, dim: int) -> Tensor:
    """Return `count` rows or columns of each sample of x (B, C, H, W) from its own `first` (B,) on; zeros beyond its edges."""
    at = torch.arange(count, device=x.device) + first[:, None]
    shape = [len(x), 1, count, 1] if dim == 2 else [len(x), 1, 1, count]
    inside = ((at >= 0) & (at < x.shape[dim])).view(shape)
    wanted = list(x.shape)
    wanted[dim] = count
    found = x.gather(dim, at.clamp(0, x.shape[dim] - 1).view(shape).expand(wanted))
    return found.where(inside, 0.0)


def rendering_loss(pred: Tensor, target: Tensor, lamps: Tensor, eyes: Tensor) -> Tensor:
    """Return the mean difference of `relit` pictures: squares of maps (B, 8, H, W) -> (B,).

    Args:
        lamps, eyes: (B, 9, 3), see `materials.relighting.Relighting`.
    """
    return (relit(pred, lamps, eyes) - relit(target, lamps, eyes)).abs().mean((1, 2, 3, 4))


def relit(maps: Tensor, lamps: Tensor, eyes: Tensor) -> Tensor:
    """Return log(radiance + 0.1) of maps under N lamps, (B, N, 3, H, W); see `radiance`."""
    return torch.log(radiance(maps, lamps, eyes) + _OFFSET)


def radiance(maps: Tensor, lamps: Tensor, eyes: Tensor) -> Tensor:
    """Return pictures of maps under N lamps, linear, (B, N, 3, H, W); white in the middle that faces its lamp is 1.

    Args:
        maps: (B, 8, H, W) sRGB albedo, roughness, metallic in [0, 1], normals.
        lamps, eyes: (B, N, 3), see `rendering_loss`.
    """
    points = _points(maps)
    to_lamp, to_eye = column(lamps) - points, unit(column(eyes) - points)
    nearer = _square(column(lamps)) / _square(to_lamp)  # than the middle, squared
    return math.pi * nearer * reflected(linear_maps(maps)[:, None], to_eye, unit(to_lamp))


@torch.no_grad()
def shaded_metrics(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Compare maps (B, 8, H, W) by how they look under `LAMPS` lamps that never change, from above: name to (B,).

    `relit_rmse` and `relit_ssim` are of log(radiance + 0.1), SSIM with a data range from black to white that faces its
    lamp (1; a highlight may pass it); `relit_detail` and `relit_detail_true` are how far a pixel of these pictures, and
    of the true ones, is from the mean of its neighbours. Means over the lamps.
    """
    errors, alike, detail, detail_true = [], [], [], []
    for lamp in fixed_lamps().to(pred):  # one at a time: sixteen pictures of 2048 px would not fit
        place, eye = lamp.expand(len(pred), 1, 3), pred.new_tensor([0.0, 0.0, EYE_AT]).expand(len(pred), 1, 3)
        ours, theirs = (relit(maps, place, eye)[:, 0] for maps in (pred, target))
        errors.append((ours - theirs).square().mean((1, 2, 3)).sqrt())
        detail.append(_detail(ours))
        detail_true.append(_detail(theirs))
        black, white = math.log(_OFFSET), math.log(1 + _OFFSET)
        ours, theirs = ((picture - black) / (white - black) for picture in (ours, theirs))
        alike.append(ssim(ours, theirs).mean(1))
    found = {"rmse": errors, "ssim": alike, "detail": detail, "detail_true": detail_true}
    return {f"relit_{name}": torch.stack(values).mean(0) for name, values in found.items()}


def _detail(pictures: Tensor) -> Tensor:
    """Return the mean distance of a pixel of (B, C, H, W) from the mean of its four neighbours, (B,); the border is left out."""
    inner = pictures[..., 1:-1, 1:-1]
    rows = pictures[..., :-2, 1:-1] + pictures[..., 2:, 1:-1]
    columns = pictures[..., 1:-1, :-2] + pictures[..., 1:-1, 2:]
    return (inner - (rows + columns) / 4).abs().mean((1, 2, 3))


def fixed_lamps() -> Tensor:
    """Return where the lamps of `shaded_metrics` are: (16, 3), evenly over the directions within 60 degrees of above."""
    turns = torch.arange(LAMPS, dtype=torch.float64)
    height = 1 - (turns + 0.5) / LAMPS * 0.5  # equal shares of the sphere's area (Gonzalez 2010's spiral)
    angle, across = turns * math.pi * (3 - math.sqrt(5)), (1 - height.square()).sqrt()
    return EYE_AT * torch.stack([across * angle.cos(), across * angle.sin(), height], dim=1)


def _square(vectors: Tensor) -> Tensor:
    return dot(vectors, vectors)


def _points(like: Tensor) -> Tensor:
    """Return the pixels' places (3, H, W) in the frame of lamps and eyes."""
    height, width = like.shape[-2:]
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width * 2 - 1
    y = 1 - (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height * 2
    return torch.stack(torch.broadcast_tensors(x[None, :], y[:, None], torch.zeros_like(x)[None, :]))
