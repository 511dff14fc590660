"""Cameras with the parameters that a search may move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from neuropbr_dist.data.register.pose import Pose
from neuropbr_dist.materials.plane import Matrix

M = TypeVar("M", bound="Motion")
_DIFFERENCE = 1e-5


class Motion(Protocol):
    """A camera, and the steps that it may take."""

    @property
    def parameters(self) -> int:
        """Number of parameters of a step."""
        ...

    def map_to_view(self) -> Matrix:
        """Return the (3, 3) homography; see `plane.PlaneCamera`."""
        ...

    def moved(self: M, step: Matrix) -> M:
        """Return the camera after a step of (parameters,) numbers; of 0.01, the picture moves by about 1 % of its side."""
        ...


@dataclass(frozen=True, eq=False)
class Free:
    """A pinhole with all six degrees of freedom, and that of the focal length where it isn't known."""

    pose: Pose
    zoom: bool = False

    @property
    def parameters(self) -> int:
        """Number of parameters of a step: six, or seven where the focal length isn't known."""
        return 7 if self.zoom else 6

    def map_to_view(self) -> Matrix:
        """Return the pose's homography."""
        return self.pose.map_to_view()

    def moved(self, step: Matrix) -> Free:
        """Return the camera after a step; see `Pose.moved`."""
        return Free(self.pose.moved(step), self.zoom)


@dataclass(frozen=True, eq=False)
class Plane:
    """Any homography: eight degrees of freedom, whatever the lens."""

    matrix: Matrix

    @property
    def parameters(self) -> int:
        """Number of parameters of a step: eight."""
        return 8

    def map_to_view(self) -> Matrix:
        """Return the homography."""
        return self.matrix

    def moved(self, step: Matrix) -> Plane:
        """Return the homography followed by one of the picture that is nearly the identity."""
        change = np.eye(3)
        change.flat[:8] += step
        around = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])  # about the picture's middle
        return Plane(around @ change @ np.linalg.inv(around) @ self.matrix)


def generators(motion: Motion) -> Matrix:
    """Return, for each parameter, the (3, 3) rate G at which the homography changes: dH = G H (by differences)."""
    backwards = np.linalg.inv(motion.map_to_view())
    steps = np.eye(motion.parameters) * _DIFFERENCE
    rates = [motion.moved(step).map_to_view() - motion.moved(-step).map_to_view() for step in steps]
    return np.stack(rates) @ backwards / (2 * _DIFFERENCE)
