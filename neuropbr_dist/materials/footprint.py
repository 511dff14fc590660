"""Rows of a picture that show a part of the map: what rectifying that part needs to have read.

A rectangle of the plane is a polygon in the picture; it is cut to the picture's edges in homogeneous coordinates
(Sutherland and Hodgman 1974, "Reentrant Polygon Clipping"), where points behind the camera need no care of their own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from neuropbr_dist.materials.plane import MATRIX, WRAP, centre

Numbers = npt.NDArray[np.float64]

_BEYOND = 1e-3
"""Share of the picture's side by which the cut lies outside it: float32 may see a point inside that isn't quite."""
_EDGES = np.array([[1, 0, _BEYOND], [-1, 0, 1 + _BEYOND], [0, 1, _BEYOND], [0, -1, 1 + _BEYOND]], np.float64)
_FLOAT32 = 4e-6
"""Error of a projected point in units of the picture's side, where the camera's numbers are about 1."""


class Window(NamedTuple):
    """Part of a square picture: its first row and the one after its last, and the same for columns."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and of columns."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.shape[0] * self.shape[1]


def rows_seen(camera: npt.NDArray[np.float32], window: Window, side: int) -> tuple[int, int]:
    """Return the first row, and the one after the last, of all that `rectify` looks at for a part of the map.

    They are a few more than needed, and all of them where the camera sees the part nearly from its edge.

    Args:
        camera: (14,), encoded; all zeros: not known, and no row is looked at.
        window: the part of the map.
        side: of the map and of the picture, in pixels.
    """
    matrix = camera[MATRIX].astype(np.float64).reshape(3, 3)
    if not matrix.any():
        return 0, 0
    (top, bottom), (left, right) = window
    tile, pixel, middle = bool(camera[WRAP]), 1 / side, centre(matrix)
    across = _repeats((left + 0.5) / side - 0.5, (right - 0.5) / side - 0.5, middle[0], pixel, tile=tile)
    up = _repeats(0.5 - (bottom - 0.5) / side, 0.5 - (top + 0.5) / side, middle[1], pixel, tile=tile)
    seen = np.concatenate([_seen(matrix, x, y) for x in across for y in up])
    if not len(seen):
        return 0, 0
    nearest = seen[:, 2].min()
    if nearest <= 0:
        return 0, side
    v = seen[:, 1] / seen[:, 2]
    # The filter of a picture that is finer than the map (`rectify`) reaches further.
    reach = 2 * (1 + round(max(1.0, math.sqrt(abs(np.linalg.det(matrix))))))
    reach += side * _FLOAT32 * np.abs(matrix).sum() / nearest
    first, last = np.clip([v.min() * side - reach, v.max() * side + reach], 0, side)
    return math.floor(first), math.ceil(last)


def _repeats(
    low: float, high: float, middle: float, pixel: float, *, tile: bool
) -> list[tuple[float, float]]:
    """Return where the plane is looked at for map coordinates from `low` to `high`: the repeats nearest to `middle`.

    Args:
        pixel: rounding may take a point so far from its repeat's border to the other one.
        tile: whether the plane repeats.
    """
    if not tile:
        return [(low, high)]
    begin = middle - 0.5
    first, last = math.floor(low - pixel - begin), math.floor(high + pixel - begin)
    return [
        (max(low, begin + n) - pixel - n, min(high, begin + n + 1) + pixel - n)
        for n in range(first, last + 1)
    ]


def _seen(matrix: Numbers, x: tuple[float, float], y: tuple[float, float]) -> Numbers:
    """Return the corners (n, 3), homogeneous, of what the picture shows of a rectangle of the plane; none: nothing."""
    polygon = np.array([[x[0], y[0], 1], [x[1], y[0], 1], [x[1], y[1], 1], [x[0], y[1], 1]]) @ matrix.T
    for edge in _EDGES:
        inside = polygon @ edge
        kept: list[Numbers] = []
        for i, (to, d) in enumerate(zip(polygon, inside, strict=True)):
            before, d_before = polygon[i - 1], inside[i - 1]
            if (d >= 0) != (d_before >= 0):
                kept.append(before + (to - before) * (d_before / (d_before - d)))
            if d >= 0:
                kept.append(to)
        polygon = np.array(kept).reshape(-1, 3)
    return polygon
