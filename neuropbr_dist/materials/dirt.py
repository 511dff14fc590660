"""What spoils a picture: a shadow on the surface, a smudged and scratched lens, noise, wrong exposure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from neuropbr_dist.materials.noise import Array, mix, smoothstep
from neuropbr_dist.materials.scene import Lamp


@dataclass(frozen=True)
class Caster:
    """A flat thing between key lamp and plane, out of sight: a union of thick strokes."""

    strokes: Array
    """(K, 5): start x, y, end x, y, half thickness, in plane units, where the shadow falls."""
    height: float
    """Of the caster above the plane, as a share of the lamp's."""

    def __call__(self, points: Array, lamp: Lamp) -> Array:
        """Share of the lamp's light (N,) that reaches points (3, N) of the plane; the edge is a penumbra."""
        distance = np.full(points.shape[1], np.inf, np.float32)
        for x0, y0, x1, y1, thickness in self.strokes.tolist():
            px, py, dx, dy = points[0] - x0, points[1] - y0, x1 - x0, y1 - y0
            share = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
            distance = np.minimum(distance, np.hypot(px - share * dx, py - share * dy) - thickness)
        penumbra = lamp.radius * self.height / (1 - self.height)
        return smoothstep(-penumbra, penumbra, distance)


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


@dataclass(frozen=True)
class Dirt:
    """One sample's dirt: the same shadow and lens for its three views."""

    shadow: Caster
    smudges: Array
    """(K, 5): centre x, y, radius (shares of the picture), blur strength, veil (linear light)."""
    scratches: Array
    """(K, 6): centre x, y, angle, half length, bend, brightness."""
    gain: Array
    """(3, 3): factor of each view and channel: exposure times white balance."""
    shift: Array
    """(3, 2): how far each view's lens marks are moved, in shares of the picture."""
    noise_seed: int
    """Key of the sensor noise."""

    def on_picture(self, picture: Array, view: int) -> Array:
        """A linear picture (3, S, S) as this lens and sensor record it; not clipped."""
        size = picture.shape[1]
        centres = (np.arange(size, dtype=np.float32) + 0.5) / size
        x, y = centres[None, :] - self.shift[view, 0], centres[:, None] - self.shift[view, 1]
        picture = self._scratched(self._smudged(picture, x, y), x, y)
        picture = np.maximum(picture * self.gain[view].astype(np.float32)[:, None, None], 0)
        noise = np.random.default_rng([self.noise_seed, view]).standard_normal(picture.shape, np.float32)
        return picture + noise * np.sqrt(2e-4 * picture + 9e-6, dtype=np.float32)

    def _smudged(self, picture: Array, x: Array, y: Array) -> Array:
        blurred = _blur(picture)
        for cx, cy, radius, strength, veil in self.smudges.tolist():
            far = np.hypot(x - cx, y - cy) / radius
            wobble = 0.2 * np.sin(9 * (x + 2 * y) + 40 * cx) * np.sin(11 * (y - x) + 40 * cy)
            patch = 1 - smoothstep(0.3, 1.0, far + wobble)
            picture = mix(picture, blurred, strength * patch) + veil * patch
        return picture

    def _scratched(self, picture: Array, x: Array, y: Array) -> Array:
        width = max(0.0012, 0.6 / picture.shape[1])  # at least about a pixel, or it would sparkle
        for cx, cy, angle, half_length, bend, brightness in self.scratches.tolist():
            along = np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)
            across = np.cos(angle) * (y - cy) - np.sin(angle) * (x - cx) - bend * along**2
            line = np.exp(-((across / width) ** 2)) * (1 - smoothstep(0.6, 1.0, np.abs(along) / half_length))
            picture = mix(picture, picture * 0.9 + brightness, line)
        return picture


def _blur(picture: Array) -> Array:
    """Soft focus over about 2 % of the picture: reduced, then enlarged smoothly."""
    size = picture.shape[1]
    coarse = (min(size, 48),) * 2
    channels = [Image.fromarray(channel).resize(coarse, Image.Resampling.BOX) for channel in picture]
    return np.stack([np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)) for c in channels])


def random_dirt(rng: np.random.Generator) -> Dirt:
    """Dirt of one sample."""
    make = [_hand, _slab, _bars][rng.integers(3)]
    caster = Caster(
        _turned(make(rng), rng.uniform(0, 2 * np.pi), rng.uniform(-0.2, 0.2, 2)), rng.uniform(0.08, 0.25)
    )
    smudges = rng.uniform([0.1, 0.1, 0.12, 0.5, 0.01], [0.9, 0.9, 0.32, 0.95, 0.06], (rng.integers(1, 4), 5))
    low, high = [0, 0, 0, 0.08, -0.6, 0.04], [1, 1, np.pi, 0.35, 0.6, 0.25]
    scratches = rng.uniform(low, high, (rng.integers(2, 7), 6))
    stops = np.clip(rng.uniform(-0.8, 0.6) + rng.uniform(-0.2, 0.2, (3, 1)), -0.9, 0.7)
    balance = rng.uniform(0.95, 1.05, (1, 3))
    shift = rng.uniform(-0.023, 0.023, (3, 2))
    return Dirt(caster, smudges, scratches, 2.0**stops * balance, shift, int(rng.integers(2**62)))
