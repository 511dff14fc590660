"""Where photos were taken from and how the plane lies, from the homographies between them.

Everything is in ray coordinates: a picture's point is (x, y), to the right and down from its middle, in focal lengths.
A plane n . X = 1 of the first camera's space takes its rays to those of a camera at c, turned by R, as
H = R (I - c n^T) (Hartley and Zisserman, "Multiple View Geometry", 13.1). One such H has two explanations (Malis and
Vargas 2007, "Deeper understanding of the homography decomposition"), which OpenCV lists; all links between three
photos together have one. So each listed explanation starts a least-squares fit of one plane, all stations and the
focal length to all links (the bundle adjustment of a plane), and the best fit is kept. The normal of a single
decomposition was no good start for more: noise of a pixel turns it by several degrees, the common fit averages it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from neuropbr_dist.materials.plane import Matrix

_LINK_NOISE = 1e-3  # focal lengths: what a link's points may be off by
_LIKELY_TILT = np.radians(35)  # of a person's view: a weak belief that decides where pictures can't
_STEPS, _STILL, _DIFFERENCE = 60, 1e-9, 1e-6
_NUMBERS = 6  # of a station


@dataclass(frozen=True, eq=False)
class Link:
    """How one photo's rays go over to another's."""

    first: int
    second: int
    homography: Matrix
    """(3, 3) from ray coordinates of the first to those of the second."""
    points: Matrix
    """(N, 2) ray coordinates of the first where it holds."""


@dataclass(frozen=True, eq=False)
class Station:
    """Where a photo was taken, in the hub's camera space: x right, y down, z forward; the plane is one unit away."""

    turn: Matrix
    """(3, 3) takes the hub's directions to this camera's."""
    place: Matrix
    """(3,)."""

    def from_hub(self, normal: Matrix) -> Matrix:
        """Return the homography from the hub's rays to this camera's."""
        return self.turn @ (np.eye(3) - np.outer(self.place, normal))


@dataclass(frozen=True, eq=False)
class Layout:
    """A plane and the stations over it."""

    normal: Matrix
    """(3,) unit vector into the surface, in the hub's camera space."""
    stations: dict[int, Station]
    """By photo; the hub's is at the origin."""
    zoom: float
    """True focal length over the assumed one."""
    error: float
    """Root mean square of what the links' points are off by, in focal lengths."""
    uncertainty: float
    """Standard deviation of the normal's direction, radians."""

    def homography(self, photo: int) -> Matrix:
        """Return the homography from the hub's rays to a photo's, of true focal lengths."""
        return self.stations[photo].from_hub(self.normal)

    def tilt(self, photo: int) -> float:
        """Return the angle between a photo's viewing direction and straight down, radians."""
        return float(np.arccos(np.clip((self.stations[photo].turn @ self.normal)[2], -1, 1)))


def lay_out(links: Sequence[Link], hub: int, zoom_spread: float) -> Layout:
    """Return the plane and the stations that explain the links best.

    Args:
        links: they connect every photo with the hub, and may connect others.
        hub: the photo whose camera space is used.
        zoom_spread: standard deviation of the focal length, as a share of it.
    """
    others = sorted({photo for link in links for photo in (link.first, link.second)} - {hub})
    direct = {photo: _from_hub(links, hub, photo) for photo in others}
    explained = {photo: _explanations(homography) for photo, homography in direct.items()}
    normals = [normal for options in explained.values() for _, _, normal in options]
    fit = _Fit(links, hub, others, zoom_spread)
    found = [fit.run(fit.start(normal, explained)) for normal in [np.array([0, 0, 1.0]), *normals]]
    return fit.layout(min(found, key=fit.cost))


def _from_hub(links: Sequence[Link], hub: int, photo: int) -> Matrix:
    for link in links:
        if (link.first, link.second) == (hub, photo):
            return link.homography
        if (link.second, link.first) == (hub, photo):
            return np.asarray(np.linalg.inv(link.homography))
    raise ValueError(f"no link between {hub} and {photo}")


def _explanations(homography: Matrix) -> list[tuple[Matrix, Matrix, Matrix]]:
    """Turns, places and normals that explain a homography, the plane in front of both cameras."""
    _, turns, shifts, normals = cv2.decomposeHomographyMat(homography, np.eye(3))
    found = []
    for turn, shift, normal in zip(turns, shifts, normals, strict=True):
        normal = normal[:, 0]
        place = -turn.T @ shift[:, 0]
        if normal[2] > 0 and (turn @ normal)[2] > 0 and normal @ place < 1:
            found.append((turn, place, normal))
    return found or [(np.eye(3), np.zeros(3), np.array([0, 0, 1.0]))]


class _Fit:
    """Gauss-Newton steps with damping (Levenberg 1944) over normal, stations and zoom."""

    def __init__(self, links: Sequence[Link], hub: int, others: list[int], zoom_spread: float) -> None:
        self.links, self.hub, self.others, self.zoom_spread = links, hub, others, zoom_spread
        self.targets = [_moved(link.homography, link.points) for link in links]

    def start(self, normal: Matrix, explained: dict[int, list[tuple[Matrix, Matrix, Matrix]]]) -> Matrix:
        """Return the numbers of a normal with, for each photo, the explanation whose normal is nearest."""
        numbers = [normal[:2] / normal[2]]
        for photo in self.others:
            turn, place, _ = max(explained[photo], key=lambda option: float(option[2] @ normal))
            numbers += [cv2.Rodrigues(turn)[0][:, 0], place]
        return np.concatenate([*numbers, np.zeros(1)])

    def stations(self, numbers: Matrix) -> tuple[Matrix, dict[int, Station]]:
        normal = np.array([*numbers[:2], 1.0])
        stations = {self.hub: Station(np.eye(3), np.zeros(3))}
        for k, photo in enumerate(self.others):
            own = numbers[2 + _NUMBERS * k :][:_NUMBERS]
            stations[photo] = Station(cv2.Rodrigues(own[:3])[0], own[3:])
        return normal / np.linalg.norm(normal), stations

    def misses(self, numbers: Matrix) -> Matrix:
        """What the links' points are off by, in focal lengths, (2 N,)."""
        normal, stations = self.stations(numbers)
        zoom = np.diag([np.exp(numbers[-1])] * 2 + [1.0])
        from_hub = {photo: station.from_hub(normal) for photo, station in stations.items()}
        found = []
        for link, target in zip(self.links, self.targets, strict=True):
            across = from_hub[link.second] @ np.linalg.inv(from_hub[link.first])
            there = _moved(zoom @ across @ np.linalg.inv(zoom), link.points)
            found.append((there - target).ravel() / np.sqrt(len(target)))
        return np.concatenate(found)

    def residuals(self, numbers: Matrix) -> Matrix:
        """The same in standard deviations, with what is believed beforehand."""
        normal, stations = self.stations(numbers)
        tilts = [(station.turn @ normal)[:2] / _LIKELY_TILT for station in stations.values()]
        return np.concatenate(
            [self.misses(numbers) / _LINK_NOISE, *tilts, numbers[-1:] / max(self.zoom_spread, 1e-6)]
        )

    def cost(self, numbers: Matrix) -> float:
        return float((self.residuals(numbers) ** 2).sum())

    def slopes(self, numbers: Matrix) -> Matrix:
        steps = np.eye(len(numbers)) * _DIFFERENCE
        rates = [self.residuals(numbers + step) - self.residuals(numbers - step) for step in steps]
        return np.stack(rates, 1) / (2 * _DIFFERENCE)

    def run(self, numbers: Matrix) -> Matrix:
        """Return the best numbers nearby."""
        damping, cost = 1e-3, self.cost(numbers)
        for _ in range(_STEPS):
            slopes, residuals = self.slopes(numbers), self.residuals(numbers)
            square = slopes.T @ slopes
            step = np.linalg.solve(square + damping * np.diag(np.diag(square) + 1e-9), -slopes.T @ residuals)
            lower = self.cost(numbers + step)
            if lower < cost:
                numbers, damping = numbers + step, damping / 5
                if cost - lower < _STILL * cost:
                    break
                cost = lower
            else:
                damping *= 5
                if damping > 1e8:
                    break
        return numbers

    def layout(self, numbers: Matrix) -> Layout:
        normal, stations = self.stations(numbers)
        slopes = self.slopes(numbers)
        spread = np.linalg.pinv(slopes.T @ slopes)[:2, :2]
        misses = self.misses(numbers)
        return Layout(
            normal,
            stations,
            float(np.exp(numbers[-1])),
            error=float(np.sqrt((misses**2).sum() / len(self.links))),
            uncertainty=float(np.sqrt(max(np.linalg.eigvalsh(spread)[-1], 0))),
        )


def _moved(homography: Matrix, points: Matrix) -> Matrix:
    there = points @ homography[:, :2].T + homography[:, 2]
    depth = there[:, 2:]
    return np.asarray(there[:, :2] / np.where(np.abs(depth) > 1e-3, depth, 1e-3))
