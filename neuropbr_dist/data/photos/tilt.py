"""Stations from which photos were taken, and the plane's tilt, from the homographies between the photos.

Everything is in ray coordinates: a picture's point is (x, y), to the right and down from its middle, in focal lengths.
A plane n . X = 1 of the first camera's space takes its rays to those of a camera at c, turned by R, as
H = R (I - c n^T) (Hartley and Zisserman, "Multiple View Geometry", 13.1). One such H has two explanations (Malis and
Vargas 2007, "Deeper understanding of the homography decomposition"), which OpenCV lists; all links between three
photos together have one. So each listed explanation starts a least-squares fit of one plane, all stations and the focal
length to all links (a bundle adjustment, with a plane for its points), and the best is kept.

Why not the normal that two decompositions have in common: it takes each homography as exact, and brushed metal, say,
tells nothing along its streaks. The fit weighs each of a link's eight numbers by what the pictures say of it, and lets
the focal length, which three photos of a tilted plane tell by themselves, move as far as EXIF may be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from neuropbr_dist.materials.plane import Matrix

_LENS = (
    1e-3  # share of a window's side: what a lens that isn't a pinhole, or a plane that isn't flat, may shift
)
_LIKELY_TILT = np.tan(np.radians(30))  # of a person's view: a weak belief that decides where pictures can't
_GRAZING = 0.05  # cosine of a tilt that is as unlikely as any beyond
_STEPS, _STILL, _DIFFERENCE = 60, 1e-9, 1e-6
_NUMBERS = 6  # of a station
_CENTRED = np.array(
    [[1.0, 0, 0], [0, -1.0, 0], [0, 0, 1.0]]
)  # map coordinates to a picture's, about its middle
_AS_GOOD = 6.0  # squared standard deviations


@dataclass(frozen=True, eq=False)
class Link:
    """Homography from one photo's rays to another's."""

    first: int
    second: int
    homography: Matrix
    """(3, 3) from ray coordinates of the first to those of the second."""
    window: Matrix
    """(3, 3) from map coordinates to ray coordinates of the first: the square in which it was measured."""
    precision: Matrix
    """(8, 8) inverse covariance of what it may be off by in that square, as steps of `register.motion.Plane`."""

    def apart(self, across: Matrix) -> Matrix:
        """Return the step (8,) from what was measured to another homography."""
        back = np.linalg.inv(self.homography @ self.window)
        change = _CENTRED @ back @ across @ self.window @ np.linalg.inv(_CENTRED)
        return np.asarray((change / change[2, 2] - np.eye(3)).ravel()[:8])

    def moved(self, step: Matrix) -> Matrix:
        """Return the homography that is a step (8,) away from what was measured."""
        change = np.eye(3)
        change.flat[:8] += step
        return (
            self.homography
            @ self.window
            @ np.linalg.inv(_CENTRED)
            @ change
            @ _CENTRED
            @ np.linalg.inv(self.window)
        )

    def weights(self) -> Matrix:
        """Return the (8, 8) matrix that makes steps standard deviations, a lens that isn't perfect included."""
        values, vectors = np.linalg.eigh(self.precision)
        return np.asarray((vectors / np.sqrt(1 / np.maximum(values, 1e-9) + _LENS**2)).T)

    def between(self, across: Matrix) -> Matrix:
        """Return the homography that is likeliest if the layout says `across`: as measured where that is precise."""
        step = self.apart(across)
        share = np.linalg.solve(self.precision + np.eye(8) / _LENS**2, self.precision)
        return self.moved(step - share @ step)


@dataclass(frozen=True, eq=False)
class Station:
    """Station of a photo, in the hub's camera space: x right, y down, z forward; the plane is one unit away."""

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
    """Stations by photo; the hub's is at the origin."""
    zoom: float
    """True focal length over the assumed one."""
    error: float
    """Root mean square of what the links are off by, in standard deviations."""
    uncertainty: float
    """Standard deviation of the normal's direction, radians; more where another plane explains the links as well."""

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
    costs = np.array([fit.cost(numbers) for numbers in found])
    best = found[int(costs.argmin())]
    return fit.layout(best, [found[k] for k in np.flatnonzero(costs < costs.min() + _AS_GOOD)])


def inverse(matrix: Matrix) -> Matrix:
    """Return the inverse of a homography."""
    return np.asarray(np.linalg.inv(matrix), np.float64)


def _from_hub(links: Sequence[Link], hub: int, photo: int) -> Matrix:
    for link in links:
        if (link.first, link.second) == (hub, photo):
            return link.homography
        if (link.second, link.first) == (hub, photo):
            return inverse(link.homography)
    raise ValueError(f"no link between {hub} and {photo}")


def _explanations(homography: Matrix) -> list[tuple[Matrix, Matrix, Matrix]]:
    """Return turns, places and normals that explain a homography, the plane in front of both cameras."""
    _, turns, shifts, normals = cv2.decomposeHomographyMat(homography, np.eye(3))
    found = []
    for turn, shift, normal in zip(turns, shifts, normals, strict=True):
        turn, shift, normal = (np.asarray(part, np.float64) for part in (turn, shift[:, 0], normal[:, 0]))
        place = -turn.T @ shift
        if normal[2] > 0 and (turn @ normal)[2] > 0 and normal @ place < 1:
            found.append((turn, place, normal))
    return found or [(np.eye(3), np.zeros(3), np.array([0, 0, 1.0]))]


class _Fit:
    """Gauss-Newton steps with damping (Levenberg 1944) over normal, stations and zoom."""

    def __init__(self, links: Sequence[Link], hub: int, others: list[int], zoom_spread: float) -> None:
        self.links, self.hub, self.others, self.zoom_spread = links, hub, others, zoom_spread
        self.weights = [link.weights() for link in links]

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
            stations[photo] = Station(np.asarray(cv2.Rodrigues(own[:3])[0], np.float64), own[3:])
        return normal / np.linalg.norm(normal), stations

    def misses(self, numbers: Matrix) -> Matrix:
        """Return how far the links are off, in standard deviations, (8 L,)."""
        normal, stations = self.stations(numbers)
        zoom = np.diag([np.exp(numbers[-1])] * 2 + [1.0])
        from_hub = {photo: station.from_hub(normal) for photo, station in stations.items()}
        found = []
        for link, weights in zip(self.links, self.weights, strict=True):
            across = from_hub[link.second] @ np.linalg.inv(from_hub[link.first])
            found.append(weights @ link.apart(zoom @ across @ np.linalg.inv(zoom)))
        return np.concatenate(found)

    def residuals(self, numbers: Matrix) -> Matrix:
        """Return the `misses`, with what is believed beforehand."""
        normal, stations = self.stations(numbers)
        seen = [station.turn @ normal for station in stations.values()]
        tilts = [axis[:2] / max(axis[2], _GRAZING) / _LIKELY_TILT for axis in seen]
        return np.concatenate([self.misses(numbers), *tilts, numbers[-1:] / self.zoom_spread])

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

    def layout(self, numbers: Matrix, as_good: Sequence[Matrix]) -> Layout:
        normal, stations = self.stations(numbers)
        others = [np.arccos(np.clip(normal @ self.stations(other)[0], -1, 1)) for other in as_good]
        slopes = self.slopes(numbers)
        spread = np.linalg.pinv(slopes.T @ slopes)[:2, :2]
        error = float(np.sqrt((self.misses(numbers) ** 2).mean()))
        uncertainty = np.sqrt(max(np.linalg.eigvalsh(spread)[-1], 0)) * max(error, 1.0)
        return Layout(
            normal, stations, float(np.exp(numbers[-1])), error, uncertainty=float(max(uncertainty, *others))
        )
