"""Other poses that would explain a view nearly as well: what makes a found one doubtful.

Bricks, weaves and tiles look the same a period further, or turned by a quarter. So the view, brought to the map's frame, is
compared with the maps at all shifts and quarter turns at once (by the Fourier transform); the best few that are elsewhere
are fitted like the found pose itself.
"""

from __future__ import annotations

import numpy as np

from neuropbr_dist.data.register.fit import Window, refined
from neuropbr_dist.data.register.motion import Free
from neuropbr_dist.data.register.pose import Pose, error_on_map
from neuropbr_dist.data.register.pyramid import Array, MaterialPyramid, ViewPyramid
from neuropbr_dist.materials.plane import Matrix, centre

SIDE = 128
ELSEWHERE = 0.03
"""Tiles from which on a pose is another one."""
_BLOCKS = 2
_TRIED = 3


def rivals(material: MaterialPyramid, view: ViewPyramid, pose: Pose, side: int) -> list[tuple[Pose, float]]:
    """Return poses elsewhere that explain a view best, with their correlations at `side`, best first."""
    found = []
    for start in _starts(material, view, pose):
        motion, _ = refined(material, view, Free(start), SIDE, 5)
        motion, correlation = refined(material, view, motion, side, 3)
        apart = error_on_map(motion.map_to_view(), pose.map_to_view(), wrap=True)
        if apart > ELSEWHERE:
            found.append((motion.pose, correlation))
    return sorted(found, key=lambda entry: -entry[1])


def best_shift(material: MaterialPyramid, view: ViewPyramid, map_to_view: Matrix) -> Matrix:
    """Return the (3, 3) shift of the plane, to go before a camera's homography, with which the view fits best."""
    window = Window(material, SIDE, centre(map_to_view))
    brought = window.bring(view, map_to_view)
    fit = _fit_at_shifts(brought.seen * brought.mask, window.channels)
    row, column = np.unravel_index(int(fit.argmax()), fit.shape)
    x, y = _tiles(int(row), int(column))
    return np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]])


def _starts(material: MaterialPyramid, view: ViewPyramid, pose: Pose) -> list[Pose]:
    """Return the pose, shifted and turned, where the view's low frequencies fit best."""
    map_to_view = pose.map_to_view()
    middle = centre(map_to_view)
    window = Window(material, SIDE, middle)
    brought = window.bring(view, map_to_view)
    peaks = []
    for turns in range(4):
        fit = _fit_at_shifts(np.rot90(brought.seen * brought.mask, turns), window.channels)
        if turns == 0:
            _clear(fit, 0, 0)
        for _ in range(_TRIED):
            row, column = np.unravel_index(int(fit.argmax()), fit.shape)
            peaks.append((float(fit[row, column]), turns, int(row), int(column)))
            _clear(fit, int(row), int(column))
    peaks.sort(reverse=True)
    around = np.array([window.x[[0, -1]].mean(), window.y[[0, -1]].mean()], np.float64)
    return [
        _turned(pose, around, turns).shifted(_tiles(row, column)) for _, turns, row, column in peaks[:_TRIED]
    ]


def _fit_at_shifts(seen: Array, channels: Array) -> Array:
    """Return the explained sum of squares at every shift of the channels under the view, (SIDE, SIDE), block by block."""
    count, pixels = len(channels), SIDE * SIDE
    flat = channels.reshape(count, -1)
    gram = flat @ flat.T / pixels + 0.05 * np.eye(count, dtype=np.float32)
    inverse = np.linalg.inv(gram)
    spectra = np.fft.rfft2(channels)
    total = np.zeros((SIDE, SIDE), np.float32)
    step = SIDE // _BLOCKS
    for row in range(0, SIDE, step):
        for column in range(0, SIDE, step):
            part = np.zeros_like(seen)
            part[row : row + step, column : column + step] = seen[row : row + step, column : column + step]
            against = np.fft.irfft2(spectra * np.fft.rfft2(part).conj(), (SIDE, SIDE))
            total += np.einsum("kij,kl,lij->ij", against, inverse, against, optimize=True).astype(np.float32)
    return total


def _clear(fit: Array, row: int, column: int) -> None:
    """Take the surroundings of a peak out."""
    reach = np.arange(-int(ELSEWHERE * SIDE) - 1, int(ELSEWHERE * SIDE) + 2)
    fit[np.ix_((row + reach) % SIDE, (column + reach) % SIDE)] = -np.inf


def _turned(pose: Pose, around: Matrix, quarters: int) -> Pose:
    """Turn a pose by quarters so that what it saw at p it sees at p turned about a point.

    Turns are counter-clockwise, as `np.rot90` turns pictures.
    """
    cos, sin = np.cos(quarters * np.pi / 2).round(), np.sin(quarters * np.pi / 2).round()
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    point = np.array([*around, 0.0])
    return Pose(pose.axes @ turn.T, point + turn @ (pose.eye - point), pose.focal)


def _tiles(row: int, column: int) -> Matrix:
    """Return the shift, in tiles, of a peak: `against[s]` is the sum of the view at x and the channels at x + s."""
    return np.array([(column + SIDE // 2) % SIDE - SIDE // 2, -((row + SIDE // 2) % SIDE - SIDE // 2)]) / SIDE
