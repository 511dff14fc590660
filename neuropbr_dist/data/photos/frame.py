"""Squares that every one of some views shows whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from neuropbr_dist.materials.plane import Matrix

_NOISE = 1e-9


@dataclass(frozen=True, eq=False)
class Square:
    """A square with its sides along x and y."""

    middle: Matrix
    """(2,)."""
    side: float

    def corners(self) -> Matrix:
        """Return its corners in order, (4, 2)."""
        return self.middle + self.side / 2 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1.0]])


def largest_square(views: Sequence[Matrix]) -> Square | None:
    """Return the largest square of a plane that lies in every view, or None.

    A point is in a view if four linear expressions of it are positive, and a square is if its worst corner is; so the
    largest is the best of a linear program in three unknowns, which has its optimum where three constraints touch.

    Args:
        views: (3, 3) each, from the plane's coordinates to picture coordinates in [0, 1]^2 times a positive factor.
    """
    rows = np.concatenate([_inside(view) for view in views])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    # a . middle + b - (|ax| + |ay|) side / 2 >= 0
    limits = np.column_stack([rows[:, :2], -np.abs(rows[:, :2]).sum(1) / 2])
    triples = np.array(list(combinations(range(len(rows)), 3)))
    systems = limits[triples]
    solvable = np.abs(np.linalg.det(systems)) > _NOISE
    found = np.linalg.solve(systems[solvable], -rows[triples[solvable], 2, None])[..., 0]
    holds = (found @ limits.T + rows[:, 2] >= -_NOISE * (1 + np.abs(found).max(1, keepdims=True))).all(1)
    found = found[holds & (found[:, 2] > _NOISE)]
    if not len(found):
        return None
    x, y, side = found[found[:, 2].argmax()]
    return Square(np.array([x, y]), float(side))


def _inside(view: Matrix) -> Matrix:
    """Return the rows (4, 3) that are positive on (x, y, 1) where a view shows the point."""
    u, v, depth = view
    return np.stack([u, depth - u, v, depth - v])


def area(corners: Matrix) -> float:
    """Return the area of a polygon with these corners (N, 2)."""
    x, y = corners.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def around(square: Square) -> Matrix:
    """Return the (3, 3) matrix that takes map coordinates of [-0.5, 0.5]^2 to the square of a plane whose y points down."""
    x, y = square.middle
    return np.array([[square.side, 0, x], [0, -square.side, y], [0, 0, 1.0]])
