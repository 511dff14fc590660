"""Pictures of the plane, resampled into the map's frame. Cameras are tensors of `plane.ENCODED` numbers each."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.kernels import beside
from neuropbr_dist.materials.plane import EYE, MATRIX, WRAP, turn_of_map, turn_of_picture

EXTRA_CHANNELS = 4
"""Channels that rectification adds to a picture's: a mask, and the direction to the eye."""


def rectify(views: Tensor, cameras: Tensor, side: int, rows: tuple[int, int] | None = None) -> Tensor:
    """Show in every view the same point of the plane at the same pixel: that of the map's pixel there.

    A picture that is finer than the map is area-filtered first, by a whole factor.

    Args:
        views: (B, V, C, h, w) float32 or float64.
        cameras: (B, V, 14), on the host: their numbers decide what is run. All zeros: not known.
        side: of the map, in pixels.
        rows: first row of the map and the one after the last; None: all.

    Returns:
        (B, V, C + 4, rows, side): the picture, a mask that is 1 where the view shows the point, and the unit vector
        (x, y, z) to the eye. Zeros where the mask is 0; the direction is 0 too where the eye isn't known.
    """
    factors = reductions(cameras, views.shape[-2:], side)
    return resample(views, cameras.to(views, non_blocking=True), side, rows or (0, side), factors)


def resample(
    views: Tensor, cameras: Tensor, side: int, rows: tuple[int, int], factors: list[int] | None = None
) -> Tensor:
    """Do what `rectify` does, with nothing left to be decided by the cameras' numbers.

    Args:
        factors: by how much each of the B * V pictures is reduced first; None: none is.
    """
    place, mask, direction = locate(cameras, side, rows)
    pictures = sample(views.flatten(0, 1), place.flatten(0, 1), factors).unflatten(0, views.shape[:2])
    return torch.cat([pictures * mask, mask, direction * mask], dim=2)


def locate(cameras: Tensor, side: int, rows: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each of the map's pixels where it is in the pictures, whether there, and the direction to the eye.

    Args:
        cameras: (B, V, 14).

    Returns:
        (B, V, R, side, 2) for `grid_sample`, 0 where the mask is 0; (B, V, 1, R, side); (B, V, 3, R, side).
    """
    known = (cameras[..., MATRIX] != 0).any(-1)
    matrix = cameras[..., MATRIX].unflatten(-1, (3, 3))
    matrix = torch.where(
        known[..., None, None], matrix, torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    )
    columns = (torch.arange(side, device=cameras.device, dtype=cameras.dtype) + 0.5) / side - 0.5
    x, y = columns[None, None, None, :], -columns[None, None, slice(*rows), None]
    middle = middle_of(matrix)[..., None, None]
    wrap = cameras[..., WRAP, None, None] != 0
    x = torch.where(wrap, x - torch.floor(x - middle[:, :, 0] + 0.5), x)  # (B, V, 1, side)
    y = torch.where(wrap, y - torch.floor(y - middle[:, :, 1] + 0.5), y)  # (B, V, R, 1)
    m = matrix[..., None, None]
    u, v, factor = (m[:, :, k, 0] * x + (m[:, :, k, 1] * y + m[:, :, k, 2]) for k in range(3))
    place = torch.stack([u / factor, v / factor], dim=-1)
    mask = ((place >= 0) & (place <= 1)).all(-1) & (factor > 0) & known[..., None, None]
    place = torch.where(mask[..., None], place * 2 - 1, 0.0)

    eye = cameras[..., EYE, None, None]
    to_eye = torch.stack(torch.broadcast_tensors(eye[:, :, 0] - x, eye[:, :, 1] - y, eye[:, :, 2]), dim=2)
    direction = F.normalize(to_eye, dim=2, eps=1e-6) * (eye[:, :, None, 2] > 0)
    return place, mask[:, :, None].to(cameras.dtype), direction


def middle_of(matrix: Tensor) -> Tensor:
    """Return the plane's point in the middle of the picture: (..., 3, 3) -> (..., 2). See `plane.centre`."""
    a, b, c = matrix.unbind(-2)
    cross = torch.linalg.cross  # the inverse's columns, but for the determinant, which cancels
    seen = 0.5 * cross(b, c) + 0.5 * cross(c, a) + cross(a, b)
    return seen[..., :2] / seen[..., 2:]


def reductions(cameras: Tensor, picture: torch.Size, side: int) -> list[int]:
    """Return by how much each of the views (B, V) is finer than the map in its middle, as whole numbers of
    1 or more."""
    matrix = cameras[..., MATRIX].unflatten(-1, (3, 3))
    # The determinant of a scaled camera is the share of the picture that a unit of the map takes in its middle.
    pixels = (torch.linalg.det(matrix).abs() * picture[0] * picture[1]).sqrt()
    return (pixels / side).round().clamp(1).long().flatten().tolist()


def sample(pictures: Tensor, place: Tensor, factors: list[int] | None) -> Tensor:
    """Return bilinear samples of pictures (N, C, h, w), reduced by `factors` first, at `place` (N, R, W, 2)."""
    if factors is None or max(factors) == 1:
        return F.grid_sample(pictures, place, padding_mode="border", align_corners=False)
    out = pictures.new_empty(*pictures.shape[:2], *place.shape[1:3])
    for factor in sorted(set(factors)):
        chosen = beside(pictures, [i for i, each in enumerate(factors) if each == factor], torch.int64)
        size = [max(1, round(length / factor)) for length in pictures.shape[-2:]]
        coarse = F.interpolate(pictures[chosen], size=size, mode="area")
        out[chosen] = sample(coarse, place[chosen], None)
    return out


def turn_cameras(cameras: Tensor, orientation: int) -> Tensor:
    """Return cameras (..., 14) of pictures that are turned together with their map: V . map_to_view . M^-1,
    and M . eye.

    Args:
        orientation: see `plane.turn_of_map`.
    """
    of_map = np.eye(3)
    of_map[:2, :2] = turn_of_map(orientation)
    m, v = torch.from_numpy(of_map).to(cameras), torch.from_numpy(turn_of_picture(orientation)).to(cameras)
    turned = cameras.clone()
    matrix = cameras[..., MATRIX].unflatten(-1, (3, 3))
    turned[..., MATRIX] = (v @ matrix @ m.mT).flatten(-2)
    turned[..., EYE] = cameras[..., EYE] @ m.mT
    return turned
