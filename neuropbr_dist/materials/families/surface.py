"""The tools a material is made with: a tile to draw on, and the surface that comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuropbr_dist.materials.channels import (
    ALBEDO,
    NORMAL,
    decode,
    encode_normals,
    linear_to_srgb,
    quantise,
    srgb_to_linear,
)
from neuropbr_dist.materials.noise import Array, Cells, displaced, fbm, grid_cells, smoothstep, voronoi_cells


def colour(code: str) -> Array:
    """Convert `"rrggbb"` in sRGB -> linear light, (3, 1, 1) float32."""
    levels = np.frombuffer(bytes.fromhex(code), np.uint8).astype(np.float64)
    return srgb_to_linear(decode(levels)).astype(np.float32)[:, None, None]


Place = tuple[Array, Array] | None


class Tile:
    """Coordinates, noise and random choices of one material.

    Draw random numbers in an order that doesn't depend on `size`: then every
    size shows the same material.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        centres = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.size, self.rng = size, rng
        self.x, self.y = np.meshgrid(centres, centres[::-1])

    def uniform(self, low: float, high: float) -> float:
        """Return one number from [low, high)."""
        return float(self.rng.uniform(low, high))

    def integer(self, low: int, high: int) -> int:
        """Return one whole number from low .. high, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence):
        """Return one of the options."""
        return options[int(self.rng.integers(len(options)))]

    def paint(self, codes: Sequence[str], spread: float = 0.15) -> Array:
        """Return one of the sRGB colours, made lighter or darker (and a little warmer or cooler): (3, 1, 1) linear."""
        light = self.uniform(1 - spread, 1 + spread)
        warmth = self.rng.uniform(-0.25, 0.25) * spread * np.array([1, 0, -1])
        return np.clip(colour(self.pick(codes)) * light * (1 + warmth[:, None, None]), 0, 1).astype(
            np.float32
        )

    def fbm(self, frequency: int | tuple[int, int], octaves: int = 7, gain: float = 0.5) -> Array:
        """Return noise of mean 0 and standard deviation about 1; see `noise.fbm`."""
        pair = (frequency, frequency) if isinstance(frequency, int) else frequency
        return fbm(self.size, int(self.rng.integers(2**62)), pair, octaves, gain)

    def bent(self, amount: float, frequency: int, octaves: int = 4) -> tuple[Array, Array]:
        """Return coordinates pushed about by `amount` tile widths (standard deviation): crooked edges."""
        return (
            self.x + amount * self.fbm(frequency, octaves),
            self.y + amount * self.fbm(frequency, octaves),
        )

    def swirled(self, field: Array, amount: float, frequency: int) -> Array:
        """Return the field with its coordinates pushed about."""
        return displaced(field, amount * self.fbm(frequency, 4), amount * self.fbm(frequency, 4))

    def voronoi(
        self,
        columns: int,
        rows: int | None = None,
        jitter: float = 0.8,
        at: Place = None,
        stagger: bool = False,
    ) -> Cells:
        """Return random cells (`jitter` 0: a square grid, with `stagger` a honeycomb) at coordinates `at`."""
        points = 0.5 + jitter * self.rng.uniform(-0.5, 0.5, (rows or columns, columns, 2))
        if stagger:
            points[1::2, :, 0] += 0.5
        x, y = at or (self.x, self.y)
        return voronoi_cells(x, y, points.astype(np.float32))

    def bond(
        self, columns: int, shifts: Sequence[float] | Array, corner: float = 0.0, at: Place = None
    ) -> Cells:
        """Return rows of rectangles; see `noise.grid_cells`."""
        x, y = at or (self.x, self.y)
        return grid_cells(x, y, columns, np.asarray(shifts), corner)

    def each(self, cells: Cells, low: float, high: float) -> Array:
        """Return one number for each cell, spread over its pixels: (S, S)."""
        return self.rng.uniform(low, high, cells.count).astype(np.float32)[cells.label]

    def each_colour(self, cells: Cells, codes: Sequence[str], spread: float = 0.1) -> Array:
        """Return one colour for each cell: (3, S, S) linear."""
        table = np.stack([self.paint(codes, spread)[:, 0, 0] for _ in range(cells.count)], axis=1)
        return table[:, cells.label]

    def tilted(self, cells: Cells, slope: float) -> Array:
        """Return the height of cells that each lean their own way, by slopes up to `slope`."""
        return self.each(cells, -slope, slope) * cells.x + self.each(cells, -slope, slope) * cells.y

    def cracks(self, columns: int, width: float) -> Array:
        """Return thin branching lines that come and go: 1 in the crack, 0 outside; `width` in tile widths."""
        lines = self.voronoi(columns, jitter=0.95, at=self.bent(0.025, 6, 6)).edge
        fading = smoothstep(0.2, 1.0, self.fbm(3, 3))
        return fading * (1 - smoothstep(0.3 * width, width, lines))


@dataclass
class Surface:
    """A material before encoding. Arrays are float32 on an (S, S) tile."""

    height: Array
    """(S, S) in tile widths."""
    albedo: Array
    """(3, S, S) linear light in [0, 1]."""
    roughness: Array
    """(S, S) perceptual roughness in [0, 1] (GGX alpha is its square)."""
    metallic: Array
    """(S, S) in [0, 1]."""

    def transposed(self) -> Surface:
        """Return the same with x and y exchanged: grain that ran along x runs along y."""
        turned = (
            np.ascontiguousarray(np.swapaxes(a, -1, -2))
            for a in (self.height, self.albedo, self.roughness, self.metallic)
        )
        return Surface(*turned)

    def channels(self) -> Array:
        """Return (8, S, S) float32: linear albedo, roughness, metallic, unit normal (+X right, +Y up, +Z out)."""
        shape = self.height.shape
        flat = [np.broadcast_to(a, shape)[None] for a in (self.roughness, self.metallic)]
        colours = np.clip(np.broadcast_to(self.albedo, (3, *shape)), 0, 1)
        return np.concatenate([colours, *(np.clip(a, 0, 1) for a in flat), normals(self.height)]).astype(
            np.float32
        )


def normals(height: Array) -> Array:
    """Return unit normals (3, S, S) of a periodic height (S, S) given in tile widths; +Y is up in the picture."""
    per_pixel = np.float32(height.shape[0] / 2)
    slope_x = (np.roll(height, -1, 1) - np.roll(height, 1, 1)) * per_pixel
    slope_y = (np.roll(height, 1, 0) - np.roll(height, -1, 0)) * per_pixel
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    return np.stack([-slope_x / length, -slope_y / length, 1 / length])


def encode(channels: Array, factor: int) -> Array:
    """Box-filter (8, S f, S f) float channels by `factor` and encode them as maps: uint8 (8, S, S).

    Albedo is averaged in linear light and stored as sRGB; normals are
    averaged as vectors and made unit again.
    """
    size = channels.shape[1] // factor
    if factor > 1:
        channels = channels.reshape(8, size, factor, size, factor).mean((2, 4))
    normal = channels[NORMAL] / np.linalg.norm(channels[NORMAL], axis=0)
    return quantise(np.concatenate([linear_to_srgb(channels[ALBEDO]), channels[3:5], encode_normals(normal)]))
