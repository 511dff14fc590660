"""Poses that many matches agree on: RANSAC (Fischler and Bolles 1981) over a three-point solver.

One match alone, with its turn and its scale, says roughly where all others must lie; where the plane repeats it also says
in which repeat. So each draw begins with a match that many others go with, and takes two of these to it. Poses from
nowhere near, on their side or behind the surface are never tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from neuropbr_dist.data.register.features import Matches
from neuropbr_dist.data.register.pose import Pose
from neuropbr_dist.data.register.pyramid import Array
from neuropbr_dist.materials.plane import Matrix

_SEEDS, _CANDIDATES, _DRAWS = 400, 24, 80
_TURN_SLACK, _SCALE_SLACK = np.radians(35), np.log(1.8)
_PLACE_SLACK, _SLACK_GROWTH, _MOST_SLACK = 0.02, 0.3, 0.12  # tiles, tiles a tile away
_INLIER = 3 / 256  # of the picture's side
_SAME = 0.03  # tiles


@dataclass(frozen=True)
class Bounds:
    """Bounds of the poses that are thought possible."""

    distance: tuple[float, float] = (0.3, 4.0)
    """Distance of the eye from the point in the picture's middle, in tiles: least and most."""
    tilt: float = np.radians(60)
    """Largest angle between the view and the normal."""

    def allow(self, pose: Pose) -> bool:
        """Return whether a pose is within them."""
        if pose.eye[2] <= 0 or pose.tilt > self.tilt:
            return False
        distance = pose.eye[2] / np.cos(pose.tilt)
        return self.distance[0] <= distance <= self.distance[1]


def poses(
    matches: Matches, focal: float, wrap: bool, bounds: Bounds, rng: np.random.Generator
) -> Iterator[Pose]:
    """Yield poses that many matches agree on, likely ones first."""
    if len(matches.view) < 4:
        return
    known: list[Array] = []
    for group in groups_of(matches, wrap, bounds, focal):
        pose = _best_of_group(matches, group, focal, bounds, rng)
        if pose is None or any(_same(_corners(pose), other, wrap) for other in known):
            continue
        known.append(_corners(pose))
        yield pose


@dataclass(frozen=True)
class Group:
    """A match, and those that go with it."""

    seed: int
    """Place of the match itself among the followers."""
    followers: npt.NDArray[np.int64]
    """(N,) indices of matches."""
    places: Matrix
    """(N, 2) their points on the plane, in the repeat that goes with the seed's."""


def groups_of(matches: Matches, wrap: bool, bounds: Bounds, focal: float) -> Iterator[Group]:
    """Yield groups of matches that go together, those of most quality first."""
    closest, farthest = focal / bounds.distance[1], focal / bounds.distance[0]
    possible = (matches.scale > closest / 1.8) & (matches.scale < farthest * 1.8)
    order = np.argsort(-np.where(possible, matches.quality, -1), kind="stable")[:_SEEDS]
    groups = [_group(matches, int(i), wrap) for i in order if possible[i]]
    groups.sort(key=lambda group: -float(matches.quality[group.followers].sum()))
    for group in groups[:_CANDIDATES]:
        if len(group.followers) >= 4:
            yield group


def _group(matches: Matches, i: int, wrap: bool) -> Group:
    """Return which matches go with match i, and where their points are if i's point is where the map has it."""
    turned = np.abs((matches.turn - matches.turn[i] + np.pi) % (2 * np.pi) - np.pi)
    grown = np.abs(np.log(matches.scale / matches.scale[i]))
    alike = np.flatnonzero((turned < _TURN_SLACK) & (grown < _SCALE_SLACK))
    cos, sin = np.cos(matches.turn[i]), np.sin(matches.turn[i])
    away = (matches.view[alike] - matches.view[i]) @ np.array([[cos, -sin], [sin, cos]]) / matches.scale[i]
    apart = matches.plane[alike] - matches.plane[i] - away
    if wrap:
        apart -= np.round(apart)
    slack = np.minimum(_PLACE_SLACK + _SLACK_GROWTH * np.linalg.norm(away, axis=1), _MOST_SLACK)
    near = np.linalg.norm(apart, axis=1) < slack
    followers = alike[near]
    places = matches.plane[i] + away[near] + apart[near]
    return Group(int(np.flatnonzero(followers == i)[0]), followers, places)


def _best_of_group(
    matches: Matches, group: Group, focal: float, bounds: Bounds, rng: np.random.Generator
) -> Pose | None:
    """Return the pose that most of a group agree on; draws end when a better one is unlikely."""
    quality = matches.quality[group.followers].astype(np.float64).clip(1e-3)
    view, scale = matches.view[group.followers], matches.scale[group.followers]
    chance = quality.copy()
    chance[group.seed] = 0
    chance /= chance.sum()
    best, most, needed, done = None, 0.0, _DRAWS, 0
    while done < needed:
        done += 1
        three = [group.seed, *rng.choice(len(quality), 2, replace=False, p=chance)]
        for pose in three_point(group.places[three], view[three], focal, bounds):
            apart = np.linalg.norm(_on_plane(view, pose) - group.places, axis=1) * scale
            support = float(quality[apart < _INLIER].sum())
            if support > most:
                best, most = pose, support
                share = min(support / quality.sum(), 0.999)
                needed = min(needed, int(np.log(0.001) / np.log(1 - share**2 + 1e-12)) + 5)
    return best


def three_point(plane: Array, view: Array, focal: float, bounds: Bounds) -> list[Pose]:
    """Return the poses within bounds that see three points of the plane where the view has them (up to four).

    Args:
        plane: (3, 2) x right, y down, in tiles.
        view: (3, 2) picture coordinates.
    """
    points = np.column_stack([plane[:, 0], plane[:, 1], np.zeros(3)])  # x right, y down, z into the surface
    intrinsic = np.array([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1.0]])
    _, turns, shifts = cv2.solveP3P(points, view.astype(np.float64), intrinsic, None, cv2.SOLVEPNP_AP3P)
    flip = np.diag([1.0, -1.0, -1.0])  # to x right, y up, z out of the surface
    found = []
    for turn, shift in zip(turns, shifts, strict=True):
        axes = cv2.Rodrigues(turn)[0]
        pose = Pose(axes @ flip, flip @ (-axes.T @ shift[:, 0]), focal)
        if bounds.allow(pose):
            found.append(pose)
    return found


def _on_plane(view: Array, pose: Pose) -> Array:
    """Convert picture coordinates (N, 2) to the plane's, x right and y down."""
    backwards = np.linalg.inv(pose.map_to_view())
    there = view @ backwards[:, :2].T + backwards[:, 2]
    return there[:, :2] / there[:, 2:] * [1, -1]


def _corners(pose: Pose) -> Array:
    """Return the points of the plane that are seen a quarter from the picture's corners: (4, 2)."""
    return _on_plane(np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]), pose)


def _same(corners: Array, others: Array, wrap: bool) -> bool:
    apart = corners - others
    if wrap:
        apart -= np.round(apart.mean(0))
    return bool(np.abs(apart).max() < _SAME)
