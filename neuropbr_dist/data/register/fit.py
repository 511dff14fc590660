"""How well a pose explains a view by its material's maps, and the pose nearby that does so best.

In each of a few square blocks the normalised view, seen in the map's frame, is a weighted sum of the maps' channels;
the weights are found by least squares (ridge regression), so any light will do. The share of the view's variance that
is explained so is the score. A Gauss-Newton search moves the pose (Lucas and Kanade 1981, in the form of Baker and
Matthews 2004, "Lucas-Kanade 20 Years On": the template's gradient, here that of the weighted sum).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from neuropbr_dist.data.register.pose import Pose
from neuropbr_dist.data.register.pyramid import Array, MaterialPyramid, ViewPyramid
from neuropbr_dist.materials.plane import Matrix, centre

_PIXELS_A_DATUM = 12.0  # normalised pictures are smooth: so many neighbouring pixels count as one observation
_RIDGE = 2 * _PIXELS_A_DATUM
_NEAREST = 1e-3  # points closer to the camera's plane than this, in tiles, are behind it
BLOCKS = {64: 4, 128: 4, 256: 8, 512: 16}
"""Blocks along each side of a window, by its side: enough of them for light that changes over the picture, and for
metals, whose look is no weighted sum of anything for long; not so many that they explain noise."""
_LONGEST_STEP = 0.1
_STILL = 0.02  # pixels: a shorter step ends the search


class Motion(Protocol):
    """A pose and the ways in which it may be moved."""

    @property
    def pose(self) -> Pose: ...
    def directions(self) -> Matrix:
        """Return the steps of `Pose.moved` that its parameters stand for, one a column."""
        ...

    def moved(self, step: Matrix) -> Motion: ...


@dataclass(frozen=True, eq=False)
class Free:
    """All six degrees of freedom, and the focal length where it isn't known."""

    pose: Pose
    zoom: bool = False

    def directions(self) -> Matrix:
        """Return the identity."""
        return np.eye(7 if self.zoom else 6)

    def moved(self, step: Matrix) -> Free:
        """Return the motion after a step."""
        return Free(self.pose.moved(step), self.zoom)


@dataclass(frozen=True)
class Explained:
    """What a regression of a view on the channels came to, block by block."""

    weights: Array
    """(B, B, K + 1), the last for a constant."""
    total: float
    """Sum of squares of the view about its blocks' means."""
    left: float
    """Sum of squares that isn't explained."""
    seen: float
    """Pixels that the view shows."""
    parameters: float

    @property
    def correlation(self) -> float:
        """Multiple correlation, adjusted for the number of parameters; negative where there is less than chance gives."""
        data = self.seen / _PIXELS_A_DATUM
        if self.total <= 0 or data <= self.parameters + 1:
            return 0.0
        share = 1 - self.left / self.total * data / (data - self.parameters)
        return float(np.sign(share) * np.sqrt(abs(share)))


class Window:
    """One tile of the plane about a point, at one side: the points, and the maps' channels there."""

    def __init__(self, material: MaterialPyramid, side: int, middle: Matrix, blocks: int | None = None) -> None:
        channels = material.channels(side)
        steps = np.round(middle * side).astype(int) if material.wrap else np.zeros(2, int)
        self.side, self.blocks = side, blocks or BLOCKS.get(side, 16)
        self.channels = np.roll(channels, (steps[1], -steps[0]), (1, 2)) if steps.any() else channels
        place = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
        self.x, self.y = place + steps[0] / side, -place + steps[1] / side
        constant = np.ones((1, side, side), np.float32)
        self._blocked = self._in_blocks(np.concatenate([self.channels, constant]))

    def _in_blocks(self, planes: Array) -> Array:
        """(K, side, side) -> (B * B, pixels, K)."""
        b, width = self.blocks, self.side // self.blocks
        parted = planes.reshape(-1, b, width, b, width).transpose(1, 3, 2, 4, 0)
        return np.ascontiguousarray(parted).reshape(b * b, width * width, -1)

    def place(self, map_to_view: Matrix) -> tuple[Array, Array, Array]:
        """Return where the window's points are in the picture, u and v, and their depths."""
        h = map_to_view.astype(np.float32)
        x, y = self.x[None, :].astype(np.float32), self.y[:, None].astype(np.float32)
        u, v, depth = (h[k, 0] * x + (h[k, 1] * y + h[k, 2]) for k in range(3))
        nearness = np.where(depth > _NEAREST, 1 / np.maximum(depth, _NEAREST), np.float32(1e6))
        return u * nearness, v * nearness, depth

    def explain(self, seen: Array, mask: Array) -> Explained:
        """Regress a view, brought to the window, on the channels."""
        blocked = self._in_blocks(np.stack([seen, mask]))
        target, weight = blocked[..., :1], blocked[..., 1:]
        weighted = self._blocked * weight
        gram = weighted.transpose(0, 2, 1) @ self._blocked
        against = weighted.transpose(0, 2, 1) @ target
        weights = np.linalg.solve(gram + _RIDGE * np.eye(gram.shape[-1], dtype=np.float32), against)
        square = float((target * target * weight).sum())
        count = weight.sum((1, 2))
        total = square - float((against[:, -1, 0] ** 2 / np.maximum(count, 1)).sum())
        left = square - float((2 * weights * against - weights * (gram @ weights)).sum())
        b = self.blocks
        parameters = 0.5 * b * b * gram.shape[-1]
        return Explained(weights.reshape(b, b, -1), total, left, float(count.sum()), parameters)

    def predicted(self, weights: Array) -> Array:
        """Return the weighted sum of channels, the weights interpolated between the blocks' centres."""
        smooth = (
            cv2.resize(np.ascontiguousarray(weights[..., k]), (self.side, self.side))
            for k in range(weights.shape[-1])
        )
        out = np.zeros((self.side, self.side), np.float32)
        for weight, channel in zip(smooth, [*self.channels, np.float32(1)], strict=True):
            out += weight * channel
        return out


def correlation(material: MaterialPyramid, view: ViewPyramid, pose: Pose, side: int) -> float:
    """Return how well the pose explains the view, from about 0 (not at all) to 1; see `Explained.correlation`."""
    return explained(material, view, pose, side).correlation


def explained(material: MaterialPyramid, view: ViewPyramid, pose: Pose, side: int) -> Explained:
    """Return the regression of a view on the channels at one side."""
    map_to_view = pose.map_to_view()
    window = Window(material, side, centre(map_to_view))
    return window.explain(*brought(window, view, map_to_view)[:2])


def brought(window: Window, view: ViewPyramid, map_to_view: Matrix) -> tuple[Array, Array, Array, Array, Array]:
    """Return the view and its mask in the window's frame, and the points' u, v and depths."""
    picture, usable = view.at(window.side)
    u, v, depth = window.place(map_to_view)
    mask = sampled(usable, u, v) * (depth > _NEAREST)
    return sampled(picture, u, v), mask, u, v, depth


def sampled(plane: Array, u: Array, v: Array) -> Array:
    """Return bilinear samples at picture coordinates; 0 outside."""
    side = plane.shape[0]
    return np.asarray(cv2.remap(plane, u * side - 0.5, v * side - 0.5, cv2.INTER_LINEAR))


def refined(
    material: MaterialPyramid, view: ViewPyramid, motion: Motion, side: int, steps: int = 8
) -> tuple[Motion, float]:
    """Return the motion's best pose nearby, and its correlation there, at one side.

    Args:
        steps: at most so many.
    """
    window = Window(material, side, centre(motion.pose.map_to_view()))
    best, highest = motion, -np.inf
    for remaining in range(steps, -1, -1):
        map_to_view = motion.pose.map_to_view()
        seen, mask, u, v, depth = brought(window, view, map_to_view)
        found = window.explain(seen, mask)
        if found.correlation > highest:
            best, highest = motion, found.correlation
        if not remaining or found.seen < 0.1 * side * side or not len(window.channels):
            break
        step = _step(window, motion, found, seen, mask, u, v, depth)
        motion = motion.moved(step)
        if np.abs(step).max() < _STILL / side:
            break
    return best, highest


def _step(
    window: Window, motion: Motion, found: Explained, seen: Array, mask: Array, u: Array, v: Array, depth: Array
) -> Matrix:
    """One Gauss-Newton step: how the motion's parameters should change."""
    template = window.predicted(found.weights)
    residual = template - seen
    spread = max(0.3, 1.5 * float(np.sqrt(found.left / max(found.seen, 1))))
    robust = mask / (1 + (residual / spread) ** 2)  # Cauchy: highlights and shadows that no map explains
    slopes = _slopes(window, motion, template, u, v, depth)
    weighted = slopes * robust.ravel()
    normal = (weighted @ slopes.T).astype(np.float64)
    damped = normal + np.diag(1e-5 * np.diag(normal) + 1e-9)
    step = np.linalg.solve(damped, (weighted @ residual.ravel()).astype(np.float64))
    longest = np.abs(step).max()
    return step * (_LONGEST_STEP / longest) if longest > _LONGEST_STEP else step


def information(material: MaterialPyramid, view: ViewPyramid, motion: Motion, side: int) -> Matrix:
    """Return the Gauss-Newton matrix at a motion's pose: steps along its weak eigenvectors change the fit least."""
    map_to_view = motion.pose.map_to_view()
    window = Window(material, side, centre(map_to_view))
    seen, mask, u, v, depth = brought(window, view, map_to_view)
    template = window.predicted(window.explain(seen, mask).weights)
    slopes = _slopes(window, motion, template, u, v, depth)
    return ((slopes * mask.ravel()) @ slopes.T).astype(np.float64)


def _slopes(window: Window, motion: Motion, template: Array, u: Array, v: Array, depth: Array) -> Array:
    """How the view's values change with the motion's parameters: (parameters, pixels)."""
    pose = motion.pose
    along_u, along_v = _picture_gradient(window, template, pose.map_to_view().astype(np.float32), u, v, depth)
    focal = np.float32(pose.focal)
    across, down = (u - 0.5) / focal, (v - 0.5) / focal
    a, b = along_u * focal, along_v * focal
    inward = -(a * across + b * down)  # the gradient along the depth, times it
    nearness = 1 / np.maximum(depth, _NEAREST)
    axes = pose.axes.astype(np.float32)
    shifts = [-(a * axes[0, k] + b * axes[1, k] + inward * axes[2, k]) * nearness for k in range(3)]
    basis = np.stack([inward * down - b, a - inward * across, b * across - a * down, *shifts, -inward])
    directions = motion.directions().astype(np.float32)
    return directions.T @ basis.reshape(len(basis), -1)[: len(directions)]


def _picture_gradient(window: Window, template: Array, h: Array, u: Array, v: Array, depth: Array):
    """The template's gradient along the picture's u and v: that on the map, through the inverse of its Jacobian."""
    on_x = cv2.Sobel(template, cv2.CV_32F, 1, 0, ksize=3, scale=window.side / 8)
    on_y = cv2.Sobel(template, cv2.CV_32F, 0, 1, ksize=3, scale=-window.side / 8)
    (ux, uy), (vx, vy) = ((h[k, 0] - at * h[2, 0], h[k, 1] - at * h[2, 1]) for k, at in enumerate((u, v)))
    determinant = ux * vy - uy * vx
    factor = np.maximum(depth, _NEAREST) / np.where(np.abs(determinant) > 1e-6, determinant, np.float32(1e6))
    return (on_x * vy - on_y * vx) * factor, (on_y * ux - on_x * uy) * factor
