"""The cameras of upstream NeuroPBR's renderer, of which only two angles aren't known.

Its camera stands 1.2 tiles from the middle of a tile and looks there, tilted by up to 40 degrees towards any azimuth,
with a field of view of 55 degrees and the surface's normal as its up, or the map's y where it looks nearly straight
down. (Read in its `renderer.cpp`, `shading.cu` and `io.cpp`; maps are read and pictures written upside down there, so that in
a picture the near side is at the top. `Orbit` has both ways round, and a tile's corner as the target as well.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from neuropbr_dist.data.register.fit import Window
from neuropbr_dist.data.register.pose import Pose, error_on_map, focal_of, looking
from neuropbr_dist.data.register.pyramid import MaterialPyramid, ViewPyramid
from neuropbr_dist.materials.plane import Matrix, centre

DISTANCE, FIELD_OF_VIEW = 1.2, np.radians(55)
STEEP = np.arccos(0.99)
"""Tilts below it have the map's y as up."""
MOST_TILT = np.radians(42)
_SIDE = 64
_TILTS, _AZIMUTHS = np.radians([10, 14, 18, 22, 26, 30, 34, 38, 41.0]), np.radians(np.arange(0, 360, 5.0))
_STEEP_TILTS, _STEEP_AZIMUTHS = np.radians([2.5, 7.0]), np.radians(np.arange(0, 360, 45.0))
_NEAR, _TRIED = 0.04, 6


@dataclass(frozen=True)
class Orbit:
    """One way round."""

    target: tuple[float, float]
    """Point that the camera looks at, in tiles."""
    near_side_up: bool
    """Whether the near side of the plane is at the picture's top."""

    def pose(self, tilt: float, azimuth: float) -> Pose:
        """Return the pose at two angles, in radians."""
        if tilt < STEEP:
            up = np.array([0.0, 1.0, 0.0])
        else:
            up = np.array([0.0, 0.0, -1.0 if self.near_side_up else 1.0])
        return looking(np.array(self.target), DISTANCE, tilt, azimuth, up, focal_of(FIELD_OF_VIEW))

    def angles(self, pose: Pose) -> tuple[float, float]:
        """Return the tilt and azimuth of the orbit's camera that is nearest to a pose's eye."""
        x, y, z = pose.eye - np.array([*centre(pose.map_to_view()), 0.0])
        return float(np.arctan2(np.hypot(x, y), z)), float(np.arctan2(y, x))


ORBITS = [Orbit(target, near) for target in ((0.0, 0.0), (0.5, 0.5)) for near in (True, False)]
"""Upstream's own first."""


@dataclass(frozen=True)
class OnOrbit:
    """A camera of an orbit, which has two angles to move; a `motion.Motion`."""

    orbit: Orbit
    tilt: float
    azimuth: float

    @property
    def parameters(self) -> int:
        """Number of parameters of a step: two."""
        return 2

    @property
    def pose(self) -> Pose:
        """The pose at its angles."""
        return self.orbit.pose(self.tilt, self.azimuth)

    def map_to_view(self) -> Matrix:
        """Return the pose's homography."""
        return self.pose.map_to_view()

    def moved(self, step: Matrix) -> OnOrbit:
        """Return the camera after a step of tilt and azimuth, radians; its up stays what it is."""
        low, high = (0.0, STEEP - 1e-4) if self.tilt < STEEP else (STEEP + 1e-4, MOST_TILT)
        tilt = float(np.clip(self.tilt + step[0], low, high))
        return OnOrbit(self.orbit, tilt, float(self.azimuth + step[1]))


def nearest(pose: Pose, wrap: bool) -> OnOrbit | None:
    """Return the orbit's camera that sees nearly what a pose sees, if there is one."""
    found = []
    for orbit in ORBITS:
        tilt, azimuth = orbit.angles(pose)
        motion = OnOrbit(orbit, min(tilt, MOST_TILT), azimuth)
        found.append((error_on_map(motion.map_to_view(), pose.map_to_view(), wrap), motion))
    apart, motion = min(found, key=lambda entry: entry[0])
    return motion if apart < _NEAR else None


def sweep(material: MaterialPyramid, view: ViewPyramid, orbit: Orbit) -> Iterator[OnOrbit]:
    """Yield the likeliest cameras of an orbit, best first, after a look at angles a few degrees apart."""
    window = Window(material, _SIDE, np.array(orbit.target))
    steep = [OnOrbit(orbit, t, a) for t in _STEEP_TILTS for a in _STEEP_AZIMUTHS]
    oblique = [OnOrbit(orbit, t, a) for t in _TILTS for a in _AZIMUTHS]
    scored = []
    for motion in [*steep, *oblique]:
        scored.append((window.explain(window.bring(view, motion.map_to_view())).correlation, motion))
    scored.sort(key=lambda entry: -entry[0])
    kept: list[OnOrbit] = []
    for _, motion in scored:
        if all(_apart(motion, other) > np.radians(8) for other in kept):
            kept.append(motion)
            yield motion
        if len(kept) == _TRIED:
            return


def _apart(a: OnOrbit, b: OnOrbit) -> float:
    """Return how far two cameras of an orbit are apart, about, in radians."""
    around = abs((a.azimuth - b.azimuth + np.pi) % (2 * np.pi) - np.pi)
    return float(np.hypot(a.tilt - b.tilt, around if max(a.tilt, b.tilt) >= STEEP else around * a.tilt))
