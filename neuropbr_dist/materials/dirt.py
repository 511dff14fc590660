"""Dirt of a picture: a shadow on the surface, a smudged and scratched lens, noise, wrong exposure. On the host.

`lens` puts it on pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuropbr_dist.materials.noise import Array

STROKES, SMUDGES, SCRATCHES = 7, 3, 6
"""Most strokes, smudges and scratches of a sample."""


@dataclass(frozen=True)
class Dirt:
    """One sample's dirt: the same shadow and lens for its three views."""

    strokes: Array
    """Strokes (K, 5): a caster between key lamp and plane, out of sight, as a union of thick strokes: start x, y,
    end x, y, half thickness, in plane units, where the shadow falls."""
    height: float
    """Height of the caster above the plane, as a share of the lamp's, below 1."""
    smudges: Array
    """Smudges (K, 5): centre x, y, radius (shares of the picture), blur strength, veil (linear light)."""
    scratches: Array
    """Scratches (K, 6): centre x, y, angle, half length, bend, brightness."""
    shift: Array
    """Shifts (3, 2) of each view's lens marks, in shares of the picture."""


@dataclass(frozen=True)
class Response:
    """Answer of the sensor to light."""

    gain: Array
    """Factors (3, 3) of each view and channel: exposure times white balance."""
    shot: float = 0.0
    """Variance of the noise per linear value."""
    read: float = 0.0
    """Variance of the noise in the dark."""


FAITHFUL = Response(np.ones((3, 3)))
"""A sensor without faults."""


def _turned(strokes: list[tuple[float, ...]], angle: float, at: Array) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s], [-s, c]])
    table = np.array(strokes, np.float64)
    table[:, 0:2], table[:, 2:4] = table[:, 0:2] @ turn + at, table[:, 2:4] @ turn + at
    return table


def _hand(rng: np.random.Generator) -> list[tuple[float, ...]]:
    fingers = [(0.06 * k, 0.1, 0.09 * k, rng.uniform(0.32, 0.42), 0.026) for k in (-1.5, -0.5, 0.5, 1.5)]
    return [(0, -0.5, 0, -0.1, 0.075), (0, -0.05, 0, 0.03, 0.12), (0.09, -0.06, 0.24, 0.1, 0.03), *fingers]


def _slab(rng: np.random.Generator) -> list[tuple[float, ...]]:
    edge = rng.uniform(0.1, 0.45)
    return [(-2, edge + 1, 2, edge + 1, 1.0)]


def _bars(rng: np.random.Generator) -> list[tuple[float, ...]]:
    pitch, thickness = rng.uniform(0.22, 0.5), rng.uniform(0.03, 0.08)
    return [(-2, pitch * k, 2, pitch * k, thickness) for k in range(-3, 4)]


def random_dirt(rng: np.random.Generator) -> Dirt:
    """Return the dirt of one sample."""
    make = [_hand, _slab, _bars][rng.integers(3)]
    strokes = _turned(make(rng), rng.uniform(0, 2 * np.pi), rng.uniform(-0.2, 0.2, 2))
    height = rng.uniform(0.08, 0.25)
    smudges = rng.uniform(
        [0.1, 0.1, 0.12, 0.5, 0.01], [0.9, 0.9, 0.32, 0.95, 0.06], (rng.integers(1, SMUDGES + 1), 5)
    )
    low, high = [0, 0, 0, 0.08, -0.6, 0.04], [1, 1, np.pi, 0.35, 0.6, 0.25]
    scratches = rng.uniform(low, high, (rng.integers(2, SCRATCHES + 1), 6))
    return Dirt(strokes, height, smudges, scratches, rng.uniform(-0.023, 0.023, (3, 2)))


def poor_response(rng: np.random.Generator) -> Response:
    """Return the response of a dirty sample: most of a stop too dark or too bright, tinted, noisy."""
    stops = np.clip(rng.uniform(-0.8, 0.6) + rng.uniform(-0.2, 0.2, (3, 1)), -0.9, 0.7)
    return Response(2.0**stops * rng.uniform(0.95, 1.05, (1, 3)), shot=2e-4, read=9e-6)


def fair_response(rng: np.random.Generator) -> Response:
    """Return the response of a camera left to itself: exposed to within a third of a stop, a little tinted and noisy."""
    stops = rng.uniform(-0.25, 0.2) + rng.uniform(-0.08, 0.08, (3, 1))
    shot = 10.0 ** rng.uniform(-5, -3.9)
    return Response(2.0**stops * rng.uniform(0.97, 1.03, (1, 3)), shot=shot, read=shot / 22)
