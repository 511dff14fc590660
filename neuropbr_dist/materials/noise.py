"""Tileable noise and cell patterns, sampled at any resolution.

Everything is a function of continuous tile coordinates (x to the right, y up,
one period on [0, 1)) and of a seed that doesn't depend on the resolution, so
a tile at 2048 pixels is the tile at 256, sampled finer. Only element-wise
numpy is used: the bytes don't depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
Value = Any  # an array, or a number for all of it

# Mean over positions of the sum of squared cubic B-spline weights, in one dimension.
_SPLINE_POWER = 151 / 315
_ROWS_AT_ONCE = 64  # a band of this many rows keeps the temporaries in the processor's cache


def smoothstep(low: Value, high: Value, value: Value) -> Array:
    """Return 0 below `low`, 1 above `high`, a cubic without kinks between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: Value, b: Value, amount: Value) -> Array:
    """Return `a` where amount is 0, `b` where it is 1."""
    return a + (b - a) * amount


def _spline_taps(cells: int, size: int) -> tuple[Array, Array]:
    """Return lattice indices and cubic B-spline weights, (4, size) each, of `size` pixel centres over `cells` cells."""
    position = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(cells / size)
    start = np.floor(position).astype(np.int64)
    t = position - start
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (t + t**2 - t**3) + 1, t**3]) / 6
    return (start + np.arange(-1, 3)[:, None]) % cells, weights.astype(np.float32)


def spline_upsample(lattice: Array, size: int) -> Array:
    """Return a periodic cubic B-spline through a lattice: (rows, columns) -> (size, size)."""
    columns, weights = _spline_taps(lattice.shape[1], size)
    wide = sum(w * lattice[:, c] for c, w in zip(columns, weights, strict=True))
    rows, weights = _spline_taps(lattice.shape[0], size)
    return sum(w[:, None] * wide[r] for r, w in zip(rows, weights, strict=True))


def fbm(size: int, seed: int, frequency: tuple[int, int], octaves: int, gain: float) -> Array:
    """Return fractional Brownian motion: octaves of spline noise, each twice as fine and `gain` as strong.

    Args:
        size: side in pixels.
        seed: key of the lattices.
        frequency: lattice cells per tile (along x, along y) of the first octave.
        octaves: number of octaves; those finer than a pixel fade out instead of aliasing.
        gain: amplitude ratio of consecutive octaves.

    Returns:
        (size, size) float32, mean 0, standard deviation about 1 with all octaves in.
    """
    total = np.zeros((size, size), np.float32)
    power = 0.0
    for octave in range(octaves):
        columns, rows = frequency[0] << octave, frequency[1] << octave
        amplitude = gain**octave
        power += amplitude**2
        visible = min(size / max(columns, rows) - 1, 1.0)
        if visible <= 0:
            continue
        lattice = np.random.default_rng([seed, octave]).standard_normal((rows, columns), np.float32)
        lattice -= lattice.mean()
        total += spline_upsample(lattice * np.float32(visible * amplitude / _SPLINE_POWER), size)
    total /= np.float32(np.sqrt(sum(gain ** (2 * o) for o in range(octaves))))
    return total


def displaced(field: Array, dx: Array, dy: Array) -> Array:
    """Return a periodic field (S, S) looked up, bilinearly, at (x + dx, y + dy); dx, dy in tile widths."""
    size = field.shape[0]
    rows, columns = np.indices(field.shape, dtype=np.float32)
    column, row = columns + dx * size, rows - dy * size  # rows count downwards, y upwards
    left, top = np.floor(column), np.floor(row)
    fx, fy = column - left, row - top
    left, top = left.astype(np.int64) % size, top.astype(np.int64) % size
    right, below = (left + 1) % size, (top + 1) % size
    flat = field.ravel()
    upper = mix(flat[top * size + left], flat[top * size + right], fx)
    lower = mix(flat[below * size + left], flat[below * size + right], fx)
    return mix(upper, lower, fy).astype(np.float32)


@dataclass
class Cells:
    """A tile cut into pieces: bricks, stones, chips, scales."""

    label: Array
    """(S, S) int: which piece, 0 .. count - 1."""
    count: int
    """Number of pieces."""
    edge: Array
    """(S, S) distance to the piece's border, in tile widths."""
    x: Array
    """(S, S) offset to the right of the piece's centre, in tile widths."""
    y: Array
    """(S, S) offset above the piece's centre, in tile widths."""

    def inward(self) -> Array:
        """Return (S, S), 0 on the border, 1 at the centre; the contours between grow rounder inwards."""
        return np.clip(self.edge / (self.edge + np.hypot(self.x, self.y) + 1e-6), 0, 1)


def grid_cells(x: Array, y: Array, columns: int, shifts: Array, corner: float) -> Cells:
    """Return rows of rectangles, each row pushed sideways by its own share of a width (a masonry bond, planks).

    Args:
        x, y: tile coordinates, (S, S).
        columns: rectangles in a row.
        shifts: one shift a row, in widths of a rectangle.
        corner: radius of the corners in tile widths.
    """
    rows = len(shifts)
    row = np.floor(y * rows).astype(np.int64)
    along = x * columns + np.asarray(shifts, np.float32)[row % rows]
    column = np.floor(along).astype(np.int64)
    px, py = (along - column - 0.5) / columns, (y * rows - row - 0.5) / rows
    inside_x, inside_y = 0.5 / columns - np.abs(px), 0.5 / rows - np.abs(py)
    rounded = corner - np.hypot(np.maximum(corner - inside_x, 0), np.maximum(corner - inside_y, 0))
    edge = rounded + np.maximum(np.minimum(inside_x, inside_y) - corner, 0)
    label = (row % rows) * columns + column % columns
    return Cells(label, rows * columns, *(a.astype(np.float32) for a in (edge, px, py)))


def voronoi_cells(x: Array, y: Array, points: Array) -> Cells:
    """Return Voronoi cells of one point in each square of a grid.

    Args:
        x, y: tile coordinates, (S, S).
        points: (rows, columns, 2) float32, each square's point relative to the square's lower left corner,
            in squares; within about [0, 1] (the 3 x 3 squares around a pixel are searched).
    """
    bands = [slice(r, r + _ROWS_AT_ONCE) for r in range(0, x.shape[0], _ROWS_AT_ONCE)]
    parts = [_voronoi_band(x[band], y[band], points) for band in bands]
    label, edge, px, py = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Cells(label, points.shape[0] * points.shape[1], edge, px, py)


def _voronoi_band(x: Array, y: Array, points: Array) -> tuple[Array, Array, Array, Array]:
    rows, columns, _ = points.shape
    gx, gy = x * columns, y * rows
    column, row = np.floor(gx).astype(np.int64), np.floor(gy).astype(np.int64)
    shape = (9, *gx.shape)
    to_x, to_y, labels = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.int64)
    for k in range(9):
        c, r = column + k % 3 - 1, row + k // 3 - 1
        labels[k] = (r % rows) * columns + c % columns
        to_x[k] = c - gx + points[..., 0].ravel()[labels[k]]
        to_y[k] = r - gy + points[..., 1].ravel()[labels[k]]
    nearest = np.argmin(to_x**2 + to_y**2, axis=0)[None]
    label, near_x, near_y = (np.take_along_axis(a, nearest, 0) for a in (labels, to_x, to_y))
    # The border with a neighbour is the perpendicular bisector of the two points.
    away_x, away_y = to_x - near_x, to_y - near_y
    length = np.sqrt(away_x**2 + away_y**2)
    middle = (to_x + near_x) * away_x + (to_y + near_y) * away_y
    edge = np.where(length > 1e-6, 0.5 * middle / np.maximum(length, 1e-6), np.float32(9)).min(0)
    scale = np.float32(1 / np.sqrt(rows * columns))
    return label[0], edge * scale, -near_x[0] / columns, -near_y[0] / rows
