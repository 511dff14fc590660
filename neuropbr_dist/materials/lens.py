"""Dirt on pictures, in torch: a caster's shadow, smudges and scratches of the lens, the sensor's answer.

The numbers are `dirt`'s; zeros are none. Every pixel is made by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuropbr_dist.materials.vectors import column

_WORD = 0xFFFFFFFF


def smoothstep(low: Tensor | float, high: Tensor | float, value: Tensor) -> Tensor:
    """Return 0 below `low`, 1 above `high`, a cubic without kinks between."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def reaching(strokes: Tensor, penumbra: Tensor, points: Tensor) -> Tensor:
    """Return the share of the key lamp's light that passes the caster, (..., 1, H, W).

    Args:
        strokes: (..., K, 5).
        penumbra: (..., 1) half the width of the shadow's edge.
        points: (..., 3, H, W) of the plane.
    """
    x0, y0, x1, y1, thickness = (column(numbers) for numbers in strokes.unbind(-1))  # (..., K, 1, 1)
    px, py, dx, dy = points[..., 0:1, :, :] - x0, points[..., 1:2, :, :] - y0, x1 - x0, y1 - y0
    share = ((px * dx + py * dy) / (dx * dx + dy * dy).clamp_min(1e-12)).clamp(0, 1)
    away = ((px - share * dx) ** 2 + (py - share * dy) ** 2).clamp_min(1e-12).sqrt() - thickness
    distance = torch.where(thickness > 0, away, 1e3).amin(-3, keepdim=True)
    edge = column(penumbra.clamp_min(1e-4))
    return smoothstep(-edge, edge, distance)


def smudged(picture: Tensor, blurred: Tensor, smudges: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return a linear picture (..., 3, H, W), out of focus and veiled in patches.

    Args:
        blurred: (..., 3, H, W) the picture out of focus.
        smudges: (..., K, 5).
        x, y: (..., 1, 1, W) and (..., 1, H, 1) where the pixels are on the lens, in shares of the picture.
    """
    cx, cy, radius, strength, veil = (column(numbers) for numbers in smudges.unbind(-1))
    far = ((x - cx) ** 2 + (y - cy) ** 2).sqrt() / radius.clamp_min(1e-6)
    wobble = 0.2 * torch.sin(9 * (x + 2 * y) + 40 * cx) * torch.sin(11 * (y - x) + 40 * cy)
    patches = 1 - smoothstep(0.3, 1.0, far + wobble)
    for patch, soft, glow in zip(*(each.split(1, dim=-3) for each in (patches, strength, veil)), strict=True):
        picture = picture + (blurred - picture) * (soft * patch) + glow * patch
    return picture


def scratched(picture: Tensor, scratches: Tensor, x: Tensor, y: Tensor, side: int) -> Tensor:
    """Return a linear picture (..., 3, H, W) with thin bright arcs.

    Args:
        scratches: (..., K, 6).
        x, y: see `smudged`.
        side: of the whole picture, in pixels.
    """
    width = max(0.0012, 0.6 / side)  # at least about a pixel, or it would sparkle
    cx, cy, angle, half_length, bend, brightness = (column(numbers) for numbers in scratches.unbind(-1))
    c, s = torch.cos(angle), torch.sin(angle)
    along = c * (x - cx) + s * (y - cy)
    across = c * (y - cy) - s * (x - cx) - bend * along**2
    ends = smoothstep(0.6, 1.0, along.abs() / half_length.clamp_min(1e-6))
    lines = torch.exp(-((across / width) ** 2)) * (1 - ends)
    for line, bright in zip(lines.split(1, dim=-3), brightness.split(1, dim=-3), strict=True):
        picture = picture + (bright - 0.1 * picture) * line
    return picture


def sensed(picture: Tensor, gain: Tensor, noise: Tensor, grain: Tensor) -> Tensor:
    """Return the linear values (..., 3, H, W) that the sensor reads.

    Args:
        gain: (..., 3).
        noise: (..., 2) variance per linear value, and in the dark.
        grain: (..., 3, H, W) see `grain`.
    """
    value = (picture * column(gain)).clamp_min(0)
    variance = column(noise[..., 0:1]) * value + column(noise[..., 1:2])
    return value + grain * variance.clamp_min(1e-20).sqrt()


def grain(keys: Tensor, rows: tuple[int, int], side: int, dtype: torch.dtype) -> Tensor:
    """Return normal noise (..., 3, rows, side) that depends on the key, the pixel and the channel alone.

    Args:
        keys: (...) int64.
        rows: first row of the picture and the one after the last.
        side: of the whole picture, in pixels.
    """
    row = torch.arange(*rows, device=keys.device)[:, None]
    pixel = row * side + torch.arange(side, device=keys.device)
    counter = pixel * 3 + torch.arange(3, device=keys.device)[:, None, None]
    low, high = _hashed(keys & _WORD), _hashed((keys >> 32) & _WORD)
    number = _hashed((_hashed(counter ^ low[..., None, None, None]) + high[..., None, None, None]) & _WORD)
    uniform = ((number >> 9).to(dtype) + 0.5) * 2.0**-23
    return torch.erfinv(2 * uniform - 1) * 2**0.5


def _hashed(word: Tensor) -> Tensor:
    """Return 32 bits mixed (Wellons 2018, "Prospecting for Hash Functions", lowbias32), held in int64."""
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & _WORD
    word = ((word ^ (word >> 15)) * 0x846CA68B) & _WORD
    return word ^ (word >> 16)
