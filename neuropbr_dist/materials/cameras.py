"""Cameras that look at a material's plane."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from neuropbr_dist.materials.families import random_stream
from neuropbr_dist.materials.noise import Array
from neuropbr_dist.materials.plane import PlaneCamera, pinhole

FIELD_OF_VIEW = np.radians(55)


def unit(vector: Array) -> Array:
    """Return a vector (3,) of length 1."""
    return vector / math.sqrt(vector @ vector)


def cross(a: Array, b: Array) -> Array:
    """Return the cross product of two vectors (3,). `np.cross`, made for arrays of them, takes twenty times as long."""
    (ax, ay, az), (bx, by, bz) = a.tolist(), b.tolist()
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def direction(tilt: float, azimuth: float) -> Array:
    """Return the unit vector `tilt` radians from the surface's normal (+Z), at `azimuth` from +X: (3,)."""
    return np.array([np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), np.cos(tilt)])


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. Units: the plane z = 0 carries one repeat of the material on [-0.5, 0.5]^2."""

    position: Array
    """(3,)."""
    target: Array
    """(3,) the point in the middle of the picture."""
    roll: float = 0.0
    """Turn about the viewing direction, radians."""

    def axes(self) -> Array:
        """Return the unit vectors to the picture's right, to its top and into it: (3, 3), one a row."""
        forward = unit(self.target - self.position)
        right = unit(cross(forward, np.array([0.0, 1.0, 0.0])))
        up = cross(right, forward)
        c, s = np.cos(self.roll), np.sin(self.roll)
        return np.stack([c * right + s * up, c * up - s * right, forward])

    def on_plane(self) -> PlaneCamera:
        """Return how its picture sees the plane."""
        return pinhole(self.position, self.axes(), float(FIELD_OF_VIEW))


def builtin_cameras(seed: int, index: int) -> list[Camera]:
    """Return the three cameras of built-in sample (seed, index), clean and dirty.

    Raises:
        UserError: seed or index is negative.
    """
    return random_cameras(random_stream(seed, index, 1))


def random_cameras(rng: np.random.Generator) -> list[Camera]:
    """Return three views in random order: one within 22 and two within 35 degrees of the normal, 120 apart in azimuth."""
    start = rng.uniform(0, 2 * np.pi)
    cameras = []
    for k, (low, high) in enumerate([(0, 22), (16, 35), (16, 35)]):
        tilt, azimuth = np.radians(rng.uniform(low, high)), start + k * 2 * np.pi / 3 + rng.uniform(-0.2, 0.2)
        target = np.array([*rng.uniform(-0.03, 0.03, 2), 0.0])
        position = target + rng.uniform(0.96, 1.08) * direction(tilt, azimuth)
        cameras.append(Camera(position, target, np.radians(rng.uniform(-5, 5))))
    return [cameras[k] for k in rng.permutation(3)]


def wide_cameras(rng: np.random.Generator) -> list[Camera]:
    """Return three views as people take them: tilted up to 45 degrees, near or far, aimed off the middle, some rolled.

    One in four samples has views of any roll, the others of up to 15 degrees. What is in the picture's middle stays
    within the tile, so that a camera and its `plane.canonical` are the same.
    """
    start, rolls = rng.uniform(0, 2 * np.pi), np.pi if rng.random() < 0.25 else np.radians(15)
    cameras = []
    for k, (low, high) in enumerate([(0, 25), (5, 45), (5, 45)]):
        tilt, azimuth = np.radians(rng.uniform(low, high)), start + k * 2 * np.pi / 3 + rng.uniform(-0.7, 0.7)
        target = np.array([*rng.uniform(-0.15, 0.15, 2), 0.0])
        position = target + rng.uniform(0.8, 1.3) * direction(tilt, azimuth)
        cameras.append(Camera(position, target, rng.uniform(-rolls, rolls)))
    return [cameras[k] for k in rng.permutation(3)]
