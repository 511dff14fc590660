"""Score of a camera, how well it explains a view by its material's maps, and the camera nearby with the best one.

In each of a few square blocks the normalised view, seen in the map's frame, is a weighted sum of the maps' channels;
the weights are found by least squares (ridge regression), so any light will do. The share of the view's variance that
is explained so is the score. A Gauss-Newton search moves the camera (Lucas and Kanade 1981, in the form of Baker and
Matthews 2004, "Lucas-Kanade 20 Years On": with the template's gradient, here that of the weighted sum).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from neuropbr_dist.data.register.motion import M, Motion, generators
from neuropbr_dist.data.register.pyramid import Array, MaterialPyramid, ViewPyramid
from neuropbr_dist.materials.plane import Matrix, centre

BLOCKS = {64: 4, 128: 4, 256: 8}
"""Blocks along each side of a window, by its side: enough of them for light that changes over the picture, and for
metals, whose look is no weighted sum of anything for long; not so many that they explain noise."""
_MOST_BLOCKS = 16
PIXELS_A_DATUM = 12.0
"""Normalised pictures are smooth: so many neighbouring pixels count as one observation."""
_RIDGE = 2 * PIXELS_A_DATUM
_NEAREST = 1e-3  # points closer to the camera's plane than this, in tiles, count as behind it
_LEAST_SEEN = 0.1  # share of the window
_LONGEST_STEP = 0.1
_STILL = 0.02  # pixels: a shorter step ends the search


@dataclass(frozen=True)
class Explained:
    """Result of a regression of a view on the channels."""

    weights: Array
    """(B, B, K + 1) by blocks, the last for a constant."""
    total: float
    """Sum of squares of the view about its blocks' means."""
    left: float
    """Sum of squares that isn't explained."""
    seen: float
    """Pixels that the view shows."""

    @property
    def correlation(self) -> float:
        """Multiple correlation, adjusted for the number of weights: 1 at best, about 0 or less by chance."""
        data, parameters = self.seen / PIXELS_A_DATUM, 0.5 * self.weights.size
        if self.total <= 0 or data <= parameters + 1:
            return 0.0
        share = 1 - self.left / self.total * data / (data - parameters)
        return float(np.sign(share) * np.sqrt(abs(share)))

    @property
    def spread(self) -> float:
        """Standard deviation of what isn't explained."""
        return float(np.sqrt(max(self.left, 0.0) / max(self.seen, 1.0)))


@dataclass(frozen=True)
class Brought:
    """A view in a window's frame: (side, side) each."""

    seen: Array
    """The normalised view."""
    mask: Array
    """Mask of the view: 1 where it shows something that isn't clipped, elsewhere 0."""
    u: Array
    v: Array
    """Picture coordinates."""
    depth: Array
    """The homography's third component."""


class Window:
    """One tile of the plane about a point, at one side: its points, and the maps' channels there."""

    def __init__(self, material: MaterialPyramid, side: int, middle: Matrix) -> None:
        channels = material.channels(side)
        steps = np.round(middle * side).astype(int) if material.wrap else np.zeros(2, int)
        self.side, self.blocks = side, BLOCKS.get(side, _MOST_BLOCKS)
        self.channels = np.roll(channels, (steps[1], -steps[0]), (1, 2)) if steps.any() else channels
        place = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
        self.x, self.y = (
            (place + steps[0] / side).astype(np.float32),
            (steps[1] / side - place).astype(np.float32),
        )
        constant = np.ones((1, side, side), np.float32)
        self._blocked = self._in_blocks(np.concatenate([self.channels, constant]))

    def _in_blocks(self, planes: Array) -> Array:
        """Cut planes (K, side, side) into blocks (B * B, pixels, K)."""
        b, width = self.blocks, self.side // self.blocks
        parted = planes.reshape(-1, b, width, b, width).transpose(1, 3, 2, 4, 0)
        return np.ascontiguousarray(parted).reshape(b * b, width * width, -1)

    def bring(self, view: ViewPyramid, map_to_view: Matrix) -> Brought:
        """Return the view as this camera shows it in the window."""
        picture, usable = view.at(self.side)
        h = map_to_view.astype(np.float32)
        u, v, depth = (h[k, 0] * self.x[None, :] + (h[k, 1] * self.y[:, None] + h[k, 2]) for k in range(3))
        nearness = np.where(depth > _NEAREST, 1 / np.maximum(depth, _NEAREST), np.float32(1e6))
        u, v = u * nearness, v * nearness
        mask = _sampled(usable, u, v) * (depth > _NEAREST)
        return Brought(_sampled(picture, u, v), mask, u, v, depth)

    def explain(self, brought: Brought) -> Explained:
        """Regress a view on the channels."""
        blocked = self._in_blocks(np.stack([brought.seen, brought.mask]))
        target, weight = blocked[..., :1], blocked[..., 1:]
        weighted = (self._blocked * weight).transpose(0, 2, 1)
        gram, against = weighted @ self._blocked, weighted @ target
        weights = np.linalg.solve(gram + _RIDGE * np.eye(gram.shape[-1], dtype=np.float32), against)
        square = float((target * target * weight).sum())
        count = weight.sum((1, 2))
        total = square - float((against[:, -1, 0] ** 2 / np.maximum(count, 1)).sum())
        left = square - float((weights * (2 * against - gram @ weights)).sum())
        shape = (self.blocks, self.blocks, gram.shape[-1])
        return Explained(weights.reshape(shape), total, left, float(count.sum()))

    def predicted(self, weights: Array) -> Array:
        """Return the weighted sum of channels, the weights interpolated between the blocks' centres."""
        out = np.zeros((self.side, self.side), np.float32)
        for k, channel in enumerate([*self.channels, np.float32(1)]):
            out += cv2.resize(np.ascontiguousarray(weights[..., k]), (self.side, self.side)) * channel
        return out


def correlation(material: MaterialPyramid, view: ViewPyramid, map_to_view: Matrix, side: int) -> float:
    """Return how well a camera explains a view, from about 0 (not at all) to 1; see `Explained.correlation`."""
    window = Window(material, side, centre(map_to_view))
    return window.explain(window.bring(view, map_to_view)).correlation


def refined(
    material: MaterialPyramid, view: ViewPyramid, motion: M, side: int, steps: int = 8
) -> tuple[M, float]:
    """Return the best camera nearby, and its correlation, at one side.

    Args:
        motion: where to start, and how it may be moved.
        steps: at most so many.
    """
    window = Window(material, side, centre(motion.map_to_view()))
    best, highest = motion, -np.inf
    for remaining in range(steps, -1, -1):
        brought = window.bring(view, motion.map_to_view())
        found = window.explain(brought)
        if found.correlation > highest:
            best, highest = motion, found.correlation
        if not remaining or found.seen < _LEAST_SEEN * side * side or not len(window.channels):
            break
        step = _step(window, motion, brought, found)
        motion = motion.moved(step)
        if np.abs(step).max() < _STILL / side:
            break
    return best, highest


def information(material: MaterialPyramid, view: ViewPyramid, motion: Motion, side: int) -> Matrix:
    """Return the Gauss-Newton matrix of a motion: steps along its weak eigenvectors change the fit least."""
    window = Window(material, side, centre(motion.map_to_view()))
    brought = window.bring(view, motion.map_to_view())
    rates = slopes(window, motion, brought, window.predicted(window.explain(brought).weights))
    return ((rates * brought.mask.ravel()) @ rates.T).astype(np.float64)


def _step(window: Window, motion: Motion, brought: Brought, found: Explained) -> Matrix:
    """Return one Gauss-Newton step: how the motion's parameters should change."""
    template = window.predicted(found.weights)
    residual = template - brought.seen
    spread = max(0.3, 1.5 * found.spread)
    robust = brought.mask / (
        1 + (residual / spread) ** 2
    )  # Cauchy: highlights and shadows that no map explains
    rates = slopes(window, motion, brought, template)
    weighted = rates * robust.ravel()
    normal = (weighted @ rates.T).astype(np.float64)
    damped = normal + np.diag(1e-5 * np.diag(normal) + 1e-9)
    step = np.linalg.solve(damped, (weighted @ residual.ravel()).astype(np.float64))
    longest = np.abs(step).max()
    return np.asarray(step * min(1.0, _LONGEST_STEP / max(longest, 1e-12)))


def slopes(window: Window, motion: Motion, brought: Brought, template: Array) -> Array:
    """Return how the view's values change with the motion's parameters: (parameters, pixels)."""
    u, v = brought.u, brought.v
    on_u, on_v = _picture_gradient(window, template, motion.map_to_view().astype(np.float32), brought)
    inward = -(on_u * u + on_v * v)
    basis = np.stack([on_u * u, on_u * v, on_u, on_v * u, on_v * v, on_v, inward * u, inward * v, inward])
    return generators(motion).reshape(-1, 9).astype(np.float32) @ basis.reshape(9, -1)


def _picture_gradient(window: Window, template: Array, h: Array, brought: Brought) -> tuple[Array, Array]:
    """Return the template's gradient along the picture's u and v: that on the map, by the inverse of its Jacobian."""
    on_x = cv2.Sobel(template, cv2.CV_32F, 1, 0, ksize=3, scale=window.side / 8)
    on_y = cv2.Sobel(template, cv2.CV_32F, 0, 1, ksize=3, scale=-window.side / 8)
    (ux, uy), (vx, vy) = (
        (h[k, 0] - at * h[2, 0], h[k, 1] - at * h[2, 1]) for k, at in enumerate((brought.u, brought.v))
    )
    area = ux * vy - uy * vx
    factor = np.maximum(brought.depth, _NEAREST) / np.where(np.abs(area) > 1e-6, area, np.float32(1e6))
    return (on_x * vy - on_y * vx) * factor, (on_y * ux - on_x * uy) * factor


def _sampled(plane: Array, u: Array, v: Array) -> Array:
    """Return bilinear samples at picture coordinates; 0 outside."""
    side = plane.shape[0]
    return np.asarray(cv2.remap(plane, u * side - 0.5, v * side - 0.5, cv2.INTER_LINEAR))
