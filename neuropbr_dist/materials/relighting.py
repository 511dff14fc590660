"""Places of the rendering loss's lamps and eyes: nine pairs a sample, drawn on the host.

As in Deschaintre et al. 2018, "Single-Image SVBRDF Capture with a Rendering-Aware Deep Network": each at a finite
distance. In three of nine pictures the two are independent; in six the eye stands where a mirror at some point of the
square would send the lamp's light, so that its highlight, which roughness decides, lies inside the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

INDEPENDENT, MIRRORED = 3, 6
RENDERS = INDEPENDENT + MIRRORED
_LOWEST = 0.1  # of a direction's z: maps seen along the surface tell little
_NEAREST, _FARTHEST = 0.5, 6.0


class Relighting(NamedTuple):
    """Places of lamp and eye, and the square of the maps that is looked at, of each sample of a micro-batch."""

    lamps: Tensor
    """Lamps (B, 9, 3), in a frame in which the square is [-1, 1]^2, x to the right, y up, z out of the surface."""
    eyes: Tensor
    """Eyes (B, 9, 3), in the same frame."""
    corners: Tensor
    """The square's top and left (B, 2), float64, as shares in [0, 1) of where they can be."""


def relighting(draws: Sequence[Iterator[float]]) -> Relighting:
    """Return the relighting of samples.

    Args:
        draws: of each sample, an endless row of independent uniform numbers in [0, 1).
    """
    lamps, eyes = np.empty((2, len(draws), RENDERS, 3), np.float32)
    corners = []
    for i, numbers in enumerate(draws):
        corners.append((next(numbers), next(numbers)))
        for k in range(RENDERS):
            lamps[i, k], eyes[i, k] = _pair(numbers, mirrored=k >= INDEPENDENT)
    return Relighting(
        torch.from_numpy(lamps),
        torch.from_numpy(eyes),
        torch.tensor(corners, dtype=torch.float64).view(-1, 2),
    )


def from_above(count: int) -> Relighting:
    """Return the relighting of `count` samples that weigh nothing: anything that makes no NaN."""
    above = torch.tensor([0.0, 0.0, 1.0]).expand(count, RENDERS, 3)
    return Relighting(above, above, torch.zeros(count, 2, dtype=torch.float64))


def _pair(numbers: Iterator[float], *, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return where a lamp and an eye are, each (3,)."""
    lamp = _direction(numbers)
    eye = lamp * [-1, -1, 1] if mirrored else _direction(numbers)
    lamp, eye = lamp * _distance(numbers), eye * _distance(numbers)
    if mirrored:  # both about the point of the square that the mirror is at
        at = np.array([2 * next(numbers) - 1, 2 * next(numbers) - 1, 0.0])
        lamp, eye = lamp + at, eye + at
    return lamp, eye


def _direction(numbers: Iterator[float]) -> np.ndarray:
    """Return a direction above the surface, (3,), as likely as the cosine of its angle to the normal."""
    radius = math.sqrt(next(numbers) * (1 - _LOWEST**2))
    angle = 2 * math.pi * next(numbers)
    return np.array([radius * math.cos(angle), radius * math.sin(angle), math.sqrt(1 - radius**2)])


def _distance(numbers: Iterator[float]) -> float:
    """Return exp of a normal number of mean 0.5 and deviation 0.75 (Box and Muller), kept away from 0 and infinity."""
    normal = math.sqrt(-2 * math.log(1 - next(numbers))) * math.cos(2 * math.pi * next(numbers))
    return min(max(math.exp(0.5 + 0.75 * normal), _NEAREST), _FARTHEST)
