"""Checks of how well photos lie on each other in the frame, and whether they show a plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from neuropbr_dist.data.photos.pairs import Shown, matched
from neuropbr_dist.data.register.pyramid import Array, ViewPyramid
from neuropbr_dist.materials.plane import Matrix, project

SIDE = 512
"""Side of the frame, in pixels, that distances are told for."""
_BLOCK, _REACH = 48, 24  # pixels: of a block, and how far away it is looked for
_CLEAR, _OFF = (
    0.6,
    4.0,
)  # correlation of a block that is found, and pixels from which on it isn't in its place
_RATIO, _NEAR = 0.8, 1 / 200  # of clear matches; and of the longer side, that matched features may be off
_LEAST_MATCHES = 30


@dataclass(frozen=True)
class Comparison:
    """Two photos beside each other in the frame, by blocks of 48 of 512 pixels."""

    found: float
    """Share of the blocks of one that are found in the other, at their place or up to 24 pixels away."""
    apart: float
    """Median distance of these from their place, in pixels of 512."""
    flat: float
    """Share of these that are in their place, within 4 pixels; 1 if none is found."""


def compare(first: Shown, second: Shown, map_to_first: Matrix, map_to_second: Matrix) -> Comparison:
    """Look for each block of the first photo in the second.

    Highlights move and aren't found.

    Args:
        map_to_first, map_to_second: (3, 3) from map coordinates to ray coordinates.
    """
    ours, theirs = (
        np.asarray(ViewPyramid(photo.seen_in(matrix, SIDE)).at(SIDE)[0], np.float32)
        for photo, matrix in ((first, map_to_first), (second, map_to_second))
    )
    starts = range(_REACH, SIDE - _BLOCK - _REACH + 1, _BLOCK)
    peaks = [_peak(ours, theirs, row, column) for row in starts for column in starts]
    away = np.array([distance for distance, likeness in peaks if likeness > _CLEAR])
    if not len(away):
        return Comparison(0.0, np.inf, 1.0)
    return Comparison(len(away) / len(peaks), float(np.median(away)), float((away < _OFF).mean()))


def _peak(ours: Array, theirs: Array, top: int, left: int) -> tuple[float, float]:
    """Return how far from its place a block is most like the other picture, in pixels, and how alike it is there."""
    block = ours[top : top + _BLOCK, left : left + _BLOCK]
    around = theirs[top - _REACH : top + _BLOCK + _REACH, left - _REACH : left + _BLOCK + _REACH]
    likeness = np.asarray(cv2.matchTemplate(around, block, cv2.TM_CCOEFF_NORMED), np.float32)
    row, column = divmod(int(likeness.argmax()), likeness.shape[1])
    down = row - _REACH + _between(likeness[:, column], row)
    across = column - _REACH + _between(likeness[row], column)
    return float(np.hypot(down, across)), float(likeness[row, column])


def _between(line: Array, at: int) -> float:
    """Return where between the pixels a peak is: the vertex of a parabola."""
    if not 0 < at < len(line) - 1:
        return 0.0
    before, here, after = (float(value) for value in line[at - 1 : at + 2])
    return 0.5 * (before - after) / min(before - 2 * here + after, -1e-6)


def depth(first: Shown, second: Shown, across: Matrix, epipolar: Matrix) -> float:
    """Return the share of clearly matched features that lie off the plane, just as depth moves them; 0 if there are few.

    Depth moves a point along its epipolar line (Hartley and Zisserman, "Multiple View Geometry", 13.3); a wrong match,
    as highlights and what repeats make many, lies anywhere.

    Args:
        across, epipolar: (3, 3) homography and essential matrix between ray coordinates.
    """
    ours, theirs = matched(first, second, _RATIO)
    if len(ours) < _LEAST_MATCHES:
        return 0.0
    near = _NEAR * max(first.photo.width, first.photo.height) / first.photo.focal
    off = np.linalg.norm(project(across, ours) - theirs, axis=1)
    lines = np.column_stack([ours, np.ones(len(ours))]) @ epipolar.T
    away = np.abs((lines * np.column_stack([theirs, np.ones(len(theirs))])).sum(1)) / np.linalg.norm(
        lines[:, :2], axis=1
    )
    flat, deep = off < near, (off > 2 * near) & (away < near / 2)
    return float(deep.sum() / max((flat | deep).sum(), 1))


def sentence(compared: Sequence[Comparison]) -> str:
    """Return how well photos lie on the hub's, in words."""
    found = min(one.found for one in compared)
    if found == 0:
        return "registered, but hardly anything in them looks alike"
    return f"{max(one.apart for one in compared):.1f} px of {SIDE} apart in the {found:.0%} of the frame that look alike"
