"""The light that comes from far away, in torch: a sky with windows, or a picture of real surroundings.

A sky is `GRADIENT` rows of three numbers (radiance at the zenith, radiance along the horizon, the brighter side) and
rows of `WINDOW` numbers (direction to the middle 3, direction along the width 3, half width, half height, radiance 3);
a window of radiance 0 isn't there.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.materials.vectors import column, dot

GRADIENT, WINDOW = 3, 11
HARMONICS = 9
"""Numbers a colour that an irradiance is."""
_WINDOW_SOFTNESS = 0.12  # curtains and corners: no window has a hard edge


def sky_radiance(gradient: Tensor, windows: Tensor, towards: Tensor, blur: Tensor | float) -> Tensor:
    """Return a sky's light from directions, averaged over a neighbourhood: (..., 3, H, W).

    Args:
        gradient: (..., 3, 3) zenith, horizon, brighter side.
        windows: (..., K, 11).
        towards: (..., 3, H, W) unit directions; below the horizon the sky is as it is along it.
        blur: (..., 1, H, W) width of the averaging box (sine of the angle), about 0.02 (mirror) to 1.5 (matt).
    """
    zenith, horizon, lean = (column(numbers) for numbers in gradient.unbind(-2))
    x, y, z = towards.split(1, dim=-3)
    light = (horizon + (zenith - horizon) * z.clamp(0, 1)) * (1 + dot(lean, towards))
    if windows.shape[-2] == 0:
        return light
    # All windows side by side: (..., K, H, W).
    centre, across = windows[..., 0:3], windows[..., 3:6]
    axes = (across, torch.linalg.cross(centre, across), centre)
    u, v, front = (column(a[..., 0]) * x + column(a[..., 1]) * y + column(a[..., 2]) * z for a in axes)
    wide = blur + _WINDOW_SOFTNESS
    seen = _box(u, column(windows[..., 6]), wide) * _box(v, column(windows[..., 7]), wide) * (front > 0)
    return light + torch.cat(
        [(seen * column(windows[..., k])).sum(-3, keepdim=True) for k in (8, 9, 10)], dim=-3
    )


def _box(offset: Tensor, half_width: Tensor, blur: Tensor | float) -> Tensor:
    """Return a box of this half width, blurred by a box: a trapezoid."""
    return torch.minimum(((half_width + blur / 2 - offset.abs()) / blur).clamp(0, 1), 2 * half_width / blur)


def sky_irradiance(gradient: Tensor, windows: Tensor) -> Tensor:
    """Return a sky's irradiance as numbers (..., 3, 9) for `irradiance_at`; directions below the surface are dark.

    Ramamoorthi and Hanrahan 2001, "An Efficient Representation for Irradiance Environment Maps", fitted to this sky.
    """
    towards = torch.as_tensor(_hemisphere(), dtype=gradient.dtype, device=gradient.device)
    light = sky_radiance(gradient, windows, towards[:, None], 0.05)[..., 0, :]
    return (
        (light * (2 * math.pi / towards.shape[-1])) @ _harmonics(towards).mT * gradient.new_tensor(_weights())
    )


@functools.cache
def _hemisphere() -> np.ndarray:
    """Return directions (3, 2048) that share the hemisphere equally."""
    z, azimuth = np.meshgrid((np.arange(32) + 0.5) / 32, (np.arange(64) + 0.5) / 64 * 2 * np.pi)
    side = np.sqrt(1 - z**2)
    return np.stack([side * np.cos(azimuth), side * np.sin(azimuth), z]).reshape(3, -1)


def _harmonics(towards: Tensor) -> Tensor:
    """Return the real harmonics, without their factors, along the first dimension: (3, ...) -> (9, ...)."""
    x, y, z = towards.unbind(0)
    return torch.stack([torch.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1])


def _weights() -> list[float]:
    """Return squared normalisations of the real harmonics times the cosine's band factors pi, 2 pi / 3, pi / 4."""
    first, second = 3 / (4 * math.pi) * 2 * math.pi / 3, 15 / (4 * math.pi) * math.pi / 4
    return [0.25, *[first] * 3, *[second] * 3, second / 4, second / 12]


def irradiance_at(harmonics: Tensor, normal: Tensor) -> Tensor:
    """Return the irradiance (..., 3, H, W), at least 0, of surfaces with these normals (..., 3, H, W).

    Args:
        harmonics: (..., 3, 9), see `sky_irradiance`.
    """
    c0, cx, cy, cz, cxy, cyz, cxz, cxx, czz = (column(numbers) for numbers in harmonics.unbind(-1))
    x, y, z = normal.split(1, dim=-3)
    received = (c0 - czz) + x * (cx + cxx * x + cxy * y + cxz * z) + y * (cy - cxx * y + cyz * z)
    return (received + z * (cz + 3 * czz * z)).clamp_min(0)


def irradiance_from_above(harmonics: np.ndarray) -> np.ndarray:
    """Return `irradiance_at` the normal (0, 0, 1): (3, 9) -> (3,)."""
    c0, cz, czz = harmonics[:, 0], harmonics[:, 3], harmonics[:, 8]
    return np.maximum((c0 - czz) + (cz + 3 * czz), 0)


class Surroundings:
    """Pictures of real surroundings, turned and dimmed as scenes ask.

    Args:
        levels: (N, L, 3, h, w + 2), see `environment.read_environments`.
        placed: (N, 4) which picture (not used here), cosine and sine of its turn, strength.
    """

    def __init__(self, levels: Tensor, placed: Tensor) -> None:
        self.levels = levels.transpose(1, 2)
        self.count = levels.shape[1]
        _, self.cosine, self.sine, self.strength = column(placed).split(1, dim=-3)

    def radiance(self, towards: Tensor, roughness: Tensor) -> Tensor:
        """Return their light (..., 3, H, W) from directions, blurred as roughness (..., 1, H, W) blurs it.

        The leading dimensions are N in all.
        """
        return self._looked_up(towards, roughness.clamp(0, 1) * (self.count - 2))

    def irradiance(self, normal: Tensor) -> Tensor:
        """Return the irradiance (..., 3, H, W) of surfaces with these normals."""
        return self._looked_up(normal, torch.full_like(normal[..., :1, :, :], self.count - 1))

    def _looked_up(self, towards: Tensor, level: Tensor) -> Tensor:
        x, y, z = towards.flatten(0, -4).split(1, dim=1)
        x, y = self.cosine * x + self.sine * y, self.cosine * y - self.sine * x
        width = self.levels.shape[-1]
        across = torch.atan2(y, x) * ((width - 2) / width / math.pi)
        down = torch.atan2((x * x + y * y).clamp_min(1e-12).sqrt(), z) * (2 / math.pi) - 1
        deep = (2 * level.flatten(0, -4) + 1) / self.count - 1
        place = torch.stack(torch.broadcast_tensors(across, down, deep), dim=-1)
        light = F.grid_sample(self.levels, place, padding_mode="border", align_corners=False)[:, :, 0]
        return (light * self.strength).reshape(towards.shape)
