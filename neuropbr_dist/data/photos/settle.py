"""Last refinement of two photos' overlay: the place that most blocks of the picture agree on, and how sure it is.

Light that comes from elsewhere shifts what one sees of metal: a brushed streak shines on one side, then on the other.
Pixels beside each other err alike then, so that their number says nothing; and parts of a picture contradict each other.
So the picture is cut into blocks. Each says with its pixels where it lies (Lucas and Kanade 1981), counts as *one*
observation, and by the share of its structure that the other photo explains; blocks that would lie elsewhere count little
(iteratively reweighted least squares with Geman and McClure's 1987 weights).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuropbr_dist.data.register.fit import Window, slopes
from neuropbr_dist.data.register.motion import Plane
from neuropbr_dist.data.register.pyramid import Array, MaterialPyramid, ViewPyramid
from neuropbr_dist.materials.plane import Matrix

_BLOCKS = 16  # along a side
_STEPS, _STILL, _LONGEST_STEP = 12, 0.02, 0.1
_RIGHT, _DOWN = 2, 5  # the parameters of a `Plane` that shift the picture
_LENS = 1e-3  # share of the side that a block may be off for a lens that isn't a pinhole
_APART = 6.0  # squared standard deviations from which on a block counts little
_TRUST = 4  # power of the explained share
_LEAST_PRECISION = 1.0  # of a step, which is a share of the side: nothing is known
_NOISE = 0.01  # variance of what no fit explains, of a normalised picture


@dataclass(frozen=True, eq=False)
class Settled:
    """A motion, and how sure it is."""

    motion: Plane
    precision: Matrix
    """(8, 8) inverse covariance of what the motion may be off by."""


def settled(pyramid: MaterialPyramid, view: ViewPyramid, motion: Plane, side: int) -> Settled:
    """Return the motion nearby that most blocks agree on.

    Args:
        side: of the window, in pixels.
    """
    window = Window(pyramid, side, np.zeros(2))
    for _ in range(_STEPS):
        curvature, pull, _ = _agreed(window, view, motion)
        damped = curvature + np.diag(1e-6 * np.diag(curvature) + 1e-12)
        step = np.linalg.solve(damped, pull)
        motion = motion.moved(step * min(1.0, _LONGEST_STEP / max(np.abs(step).max(), 1e-12)))
        if np.abs(step).max() < _STILL / side:
            break
    values, vectors = np.linalg.eigh(_agreed(window, view, motion)[2])
    return Settled(motion, np.asarray((vectors * np.maximum(values, _LEAST_PRECISION)) @ vectors.T))


def _agreed(window: Window, view: ViewPyramid, motion: Plane) -> tuple[Matrix, Matrix, Matrix]:
    """Return the Gauss-Newton matrix (8, 8) and right side (8,) of all blocks, each by what it counts; and the precision.

    The matrix has the template's gradient twice, and noise has one as well: along streaks there is nothing else. The
    precision has it beside the view's own gradient, whose noise is another.
    """
    brought = window.bring(view, motion.map_to_view())
    found = window.explain(brought)
    template = window.predicted(found.weights)
    missing = template - brought.seen
    robust = brought.mask / (1 + (missing / max(0.3, 1.5 * found.spread)) ** 2)
    ours, theirs = (slopes(window, motion, brought, picture) for picture in (template, brought.seen))
    rates, others, off, seen, counted = (
        _in_blocks(planes, window.side) for planes in (ours, theirs, missing, brought.seen, robust)
    )
    pixels = np.maximum(counted.sum((1, 2)), 1).astype(np.float64)
    weighted = rates * counted
    curvature = (weighted @ rates.transpose(0, 2, 1)).astype(np.float64)
    common = (weighted @ others.transpose(0, 2, 1)).astype(np.float64)
    pull = (weighted @ off.transpose(0, 2, 1))[..., 0].astype(np.float64)
    left = (counted * off**2).sum((1, 2)) / pixels + _NOISE
    explained = np.clip(1 - left / np.maximum((counted * seen**2).sum((1, 2)) / pixels, _NOISE), 0, 1)
    variance = left * pixels  # one observation a block, however many pixels
    share = explained**_TRUST / variance / (1 + _contradiction(curvature, pull, variance) / _APART) ** 2
    shared = np.tensordot(share, common, 1)
    return np.tensordot(share, curvature, 1), share @ pull, (shared + shared.T) / 2


def _contradiction(curvature: Matrix, pull: Matrix, variance: Matrix) -> Matrix:
    """Return how far from here each block (N,) would lie by itself, in squared standard deviations."""
    shift = [_RIGHT, _DOWN]
    own = curvature[:, shift][:, :, shift]
    flat = 1e-6 * np.trace(own, axis1=1, axis2=2)[:, None, None] + 1e-9
    spread = np.linalg.inv(own + flat * np.eye(2))
    away = spread @ pull[:, shift, None]
    spread = spread * variance[:, None, None] + _LENS**2 * np.eye(2)
    return np.asarray((away.transpose(0, 2, 1) @ np.linalg.solve(spread, away))[:, 0, 0])


def _in_blocks(planes: Array, side: int) -> Array:
    """Cut planes of `side` pixels a side into blocks (N, planes, pixels)."""
    width = side // _BLOCKS
    parted = planes.reshape(-1, _BLOCKS, width, _BLOCKS, width).transpose(1, 3, 0, 2, 4)
    return parted.reshape(_BLOCKS**2, -1, width**2)
