"""A pinhole's pose over the plane."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from neuropbr_dist.materials.plane import Matrix, PlaneCamera, canonical, scaled

TURN, SHIFT, ZOOM = slice(0, 3), slice(3, 6), 6
"""Places of a step's numbers: turn about the camera's axes (radians), shift of the eye (tiles), log of the focal length."""


@dataclass(frozen=True, eq=False)
class Pose:
    """Place and turn of a pinhole camera. Its picture is square, its axis goes through the middle."""

    axes: Matrix
    """(3, 3) unit vectors, one a row: to the picture's right, to its bottom, and the viewing direction."""
    eye: Matrix
    """(3,) in tiles, z above 0."""
    focal: float
    """Focal length over the picture's width."""

    def map_to_view(self) -> Matrix:
        """Return the (3, 3) homography from map to picture coordinates; see `plane.PlaneCamera`."""
        seen = np.column_stack([self.axes[:, 0], self.axes[:, 1], -self.axes @ self.eye])
        return np.array([[self.focal, 0, 0.5], [0, self.focal, 0.5], [0, 0, 1.0]]) @ seen

    def camera(self, wrap: bool, confidence: float = 1.0) -> PlaneCamera:
        """Return it as a file holds it: `scaled`, and, where the plane repeats, `canonical`."""
        camera = PlaneCamera(self.map_to_view(), self.eye, confidence)
        return scaled(canonical(camera) if wrap else camera)

    def moved(self, step: Matrix) -> Pose:
        """Return the pose after a step of 6 numbers, or 7 with the focal length's; see `TURN`, `SHIFT`, `ZOOM`."""
        turn = cv2.Rodrigues(np.asarray(step[TURN], np.float64))[0]
        focal = self.focal * float(np.exp(step[ZOOM])) if len(step) > ZOOM else self.focal
        return Pose(turn @ self.axes, self.eye + step[SHIFT], focal)

    def shifted(self, tiles: Matrix) -> Pose:
        """Return the pose moved along the plane by (x, y) tiles."""
        return Pose(self.axes, self.eye + np.array([*tiles, 0.0]), self.focal)

    @property
    def tilt(self) -> float:
        """Angle between the viewing direction and straight down, radians."""
        return float(np.arccos(np.clip(-self.axes[2, 2], -1, 1)))


def focal_of(field_of_view: float) -> float:
    """Return the focal length over the picture's width for a field of view in radians."""
    return float(0.5 / np.tan(field_of_view / 2))


def looking(target: Matrix, distance: float, tilt: float, azimuth: float, up: Matrix, focal: float) -> Pose:
    """Return the pose that looks at a point of the plane.

    Args:
        target: (2,) the point in the middle of the picture, in tiles.
        distance: from the eye to it, in tiles.
        tilt, azimuth: of the eye seen from the target: angle from the normal, and from x towards y; radians.
        up: (3,) direction that points to the picture's top, not along the view.
        focal: see `Pose`.
    """
    towards = np.array([np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), np.cos(tilt)])
    right = np.cross(-towards, up)
    right /= np.linalg.norm(right)
    down = np.cross(-towards, right)
    return Pose(np.stack([right, down, -towards]), np.array([*target, 0.0]) + distance * towards, focal)


def error_on_map(found: Matrix, true: Matrix, wrap: bool, side: int = 32) -> float:
    """Return how far apart on the plane two cameras place what the true one sees, in tiles: mean over the map.

    Args:
        found, true: `map_to_view` of the two.
        wrap: measure modulo whole tiles.
        side: points along each side of the map.
    """
    place = (np.arange(side) + 0.5) / side - 0.5
    points = np.stack(np.meshgrid(place, -place), -1).reshape(-1, 2)
    if wrap:
        middle = np.linalg.solve(true, [0.5, 0.5, 1.0])
        middle = middle[:2] / middle[2]
        points = middle + (points - middle + 0.5) % 1.0 - 0.5
    across = np.linalg.solve(found, true @ np.column_stack([points, np.ones(len(points))]).T)
    seen = true @ np.column_stack([points, np.ones(len(points))]).T
    inside = (seen[2] > 0) & (np.abs(seen[:2] / seen[2] - 0.5) <= 0.5).all(0)
    if not inside.any():
        return float("inf")
    apart = (across[:2] / across[2]).T[inside] - points[inside]
    if wrap:
        apart -= np.round(np.median(apart, axis=0))
    return float(np.linalg.norm(apart, axis=1).mean())
