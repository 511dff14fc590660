"""Two photos of one plane, laid on each other: matched features, then intensities.

Features (SIFT, mutual nearest neighbours) propose homographies (MAGSAC++, Barath et al. 2020, as OpenCV has it), the best
few; each is refined by `register.fit` in a square that both show, with one photo in the place of the maps, the likeliest
finer and by `settle`, and the one after which the photos look most alike is kept. So a pattern that repeats may match
anywhere, and still the right place wins, where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from neuropbr_dist.data.photos.frame import Square, around, largest_square
from neuropbr_dist.data.photos.read import Photo
from neuropbr_dist.data.photos.settle import settled
from neuropbr_dist.data.register.consensus import Bounds, groups_of
from neuropbr_dist.data.register.features import detect, match
from neuropbr_dist.data.register.fit import refined
from neuropbr_dist.data.register.motion import Plane
from neuropbr_dist.data.register.pyramid import Array, Bytes, ViewPyramid, normalised, reduced
from neuropbr_dist.materials.plane import Matrix

MATCHED_SIDE, FITTED_SIDE = 640, 1024
"""Longer sides of the photos that features are found in and that are fitted."""
WINDOW = 512
"""Side of the square in which two photos are compared, in pixels."""
_FEATURES, _RATIO, _REACH = 3000, 0.92, 2.0
_PROPOSALS, _LEAST_MATCHES, _GROUPS, _LEAST_GROUP = 4, 10, 12, 6
_LEAST_SIDE = 0.25  # of the square that both show, as a share of the first's shorter side
_MOST_STRETCH = 6.0  # between the largest and the smallest scale in a square
_COARSE, _FINE = (64, 128), (128, 256, WINDOW)
_FINELY_FITTED, _ALIKE = 2, 0.8
_PROMISING = 0.3  # correlation after the coarse fit, below which fine ones never came to what counts
_CHANNEL_NOISE = 1.5  # of 255
# At most; of a group, which is of one mind already, a quarter should agree, and 2,000 find four such by 99.96 %.
_DRAWS = {cv2.USAC_MAGSAC: 20_000, cv2.RANSAC: 2_000}
UPRIGHT = np.array([[1, 0, 0.5], [0, -1, 0.5], [0, 0, 1.0]])
"""(3, 3) from map coordinates to those of a picture of just the tile."""


def ray_to_picture(photo: Photo, focal: float) -> Matrix:
    """Return the (3, 3) matrix from ray coordinates (see `tilt`) to picture coordinates in [0, 1]^2.

    Args:
        focal: length in pixels.
    """
    return np.array([[focal / photo.width, 0, 0.5], [0, focal / photo.height, 0.5], [0, 0, 1.0]])


class Shown:
    """A photo made ready to be compared with others."""

    def __init__(self, photo: Photo) -> None:
        self.photo = photo
        self.small = _reduced(photo.pixels.transpose(1, 2, 0), FITTED_SIDE)
        gray = _reduced(self.small.mean(2, dtype=np.float32), MATCHED_SIDE)
        self.features = detect(gray, _FEATURES)

    @property
    def to_picture(self) -> Matrix:
        """Matrix (3, 3) from ray coordinates to picture coordinates; see `ray_to_picture`."""
        return ray_to_picture(self.photo, self.photo.focal)

    def mirrored(self) -> Shown:
        """Return the same of the photo mirrored left to right."""
        return Shown(replace(self.photo, pixels=np.ascontiguousarray(self.photo.pixels[:, :, ::-1])))

    def rays(self, points: Array) -> Matrix:
        """Return the ray coordinates of features' points (N, 2), which are in heights from the left and top."""
        middle = np.array([self.photo.width / self.photo.height / 2, 0.5])
        return (points.astype(np.float64) - middle) * (self.photo.height / self.photo.focal)

    def seen_in(self, square_to_rays: Matrix, side: int) -> Bytes:
        """Return the photo, uint8 (3, side, side), as seen in a square of map coordinates; black outside."""
        height, width = self.small.shape[:2]
        pixels = np.diag([width, height, 1.0]) @ self.to_picture @ square_to_rays
        place = (np.arange(side) + 0.5) / side - 0.5
        x, y = np.meshgrid(place, -place)
        there = pixels @ np.stack([x.ravel(), y.ravel(), np.ones(side * side)])
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = np.where(there[2] > 0, there[:2] / there[2], -10).astype(np.float32) - np.float32(0.5)
        picture = cv2.remap(self.small, u.reshape(side, side), v.reshape(side, side), cv2.INTER_LINEAR)
        return np.ascontiguousarray(np.asarray(picture, np.uint8).transpose(2, 0, 1))


@dataclass(frozen=True, eq=False)
class Overlay:
    """Overlay of two photos: the homography between them, and how sure it is."""

    homography: Matrix
    """(3, 3) from ray coordinates of the first to those of the second."""
    likeness: float
    """Correlation of the two in the square that both show, 1 at best, about 0 by chance."""
    square: Square
    """Square that both show, in ray coordinates of the first."""
    window: Matrix
    """(3, 3) from map coordinates to ray coordinates of the first: where they were compared."""
    precision: Matrix
    """(8, 8) inverse covariance of what the homography may be off by in the window, see `tilt.Link`."""

    @property
    def evidence(self) -> float:
        """Weight of what speaks for it; see `evidence`."""
        return evidence(self.likeness, self.square)

    @property
    def slack(self) -> float:
        """Standard deviation of where the photos lie on each other, at the window's corners, as a share of its side."""
        covariance, found = np.linalg.inv(self.precision), []
        for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)):
            shift = np.array([[x, y, 1, 0, 0, 0, -x * x, -x * y], [0, 0, 0, x, y, 1, -x * y, -y * y]])
            found.append(np.trace(shift @ covariance @ shift.T))
        return float(np.sqrt(np.mean(found)))


def evidence(likeness: float, square: Square) -> float:
    """Return the explained part of two pictures' structure, by the area that they share."""
    return -float(np.log(1 - min(max(likeness, 0.0), 0.999) ** 2)) * square.side**2


class PhotoPyramid:
    """A photo in the place of a material's maps (`register.pyramid.MaterialPyramid`): brightness and two colours."""

    wrap = False

    def __init__(self, picture: Bytes) -> None:
        red, green, blue = picture.astype(np.float32)
        self._planes = [(red + green + blue) / 3, red - blue, green - (red + blue) / 2]
        self._sides: dict[int, Array] = {}

    def channels(self, side: int) -> Array:
        """Return the channels, normalised, (3, side, side)."""
        if side not in self._sides:
            self._sides[side] = np.stack(
                [normalised(reduced(plane, side), _CHANNEL_NOISE, wrap=False) for plane in self._planes]
            )
        return self._sides[side]


def overlaid(first: Shown, second: Shown) -> Overlay | None:
    """Return how two photos lie on each other, the best there is; None where none is promising."""
    best = likeliest(first, second)
    return None if best is None else best.overlay()


def likeness(first: Shown, second: Shown) -> float:
    """Return how much two photos look alike where they lie best on each other; 0 where they don't at all."""
    best = likeliest(first, second)
    return 0.0 if best is None else best.likeness


def likeliest(first: Shown, second: Shown) -> Fitted | None:
    """Return the place of one photo on another after which they look most alike."""
    best: Fitted | None = None
    for propose in (agreed, grouped):
        found = [fitted(first, second, proposal, _COARSE) for proposal in propose(first, second)]
        promising = [each for each in found if each is not None and each.likeness > _PROMISING]
        for rough in sorted(promising, key=lambda each: -each.evidence)[:_FINELY_FITTED]:
            finer = fitted(first, second, rough.homography(), _FINE)
            if finer is not None and (best is None or finer.evidence > best.evidence):
                best = finer
        if best is not None and best.likeness > _ALIKE:
            break
    return best


def agreed(first: Shown, second: Shown) -> Iterator[Matrix]:
    """Yield homographies between rays that many matches agree on; later ones of the matches that are left."""
    a, b = matched(first, second)
    for _ in range(_PROPOSALS):
        if len(a) < _LEAST_MATCHES:
            return
        homography, agree = _homography(a, b, cv2.USAC_MAGSAC)
        if homography is None or agree.sum() < _LEAST_MATCHES:
            return
        yield homography
        a, b = a[~agree], b[~agree]


def grouped(first: Shown, second: Shown) -> Iterator[Matrix]:
    """Yield homographies between rays of matches that are turned, grown and placed alike, however few and unclear.

    Where most matches are wrong, as on a pattern that repeats, these are found when draws of four aren't.
    """
    matches = match(second.features, [first.features])
    if len(matches.view) < _LEAST_GROUP:
        return
    a, b = first.rays(matches.plane + 0.5), second.rays(matches.view)
    for group in islice(groups_of(matches, False, Bounds(), 1.0), _GROUPS):
        if len(group.followers) >= _LEAST_GROUP:
            homography, _ = _homography(a[group.followers], b[group.followers], cv2.RANSAC)
            if homography is not None:
                yield homography


def _homography(a: Matrix, b: Matrix, method: int) -> tuple[Matrix | None, npt.NDArray[np.bool_]]:
    """Return the homography that most pairs of ray coordinates agree on, and which do."""
    pixels = np.diag([MATCHED_SIDE, MATCHED_SIDE, 1.0])  # OpenCV's search expects numbers of their size
    found, agree = cv2.findHomography(
        a * MATCHED_SIDE, b * MATCHED_SIDE, method, _REACH, maxIters=_DRAWS[method], confidence=0.9999
    )
    if found is None:
        return None, np.zeros(len(a), bool)
    return np.linalg.inv(pixels) @ found @ pixels, agree[:, 0] > 0


def matched(first: Shown, second: Shown, most_ratio: float = _RATIO) -> tuple[Matrix, Matrix]:
    """Return ray coordinates (N, 2) of features that are each other's nearest, and clearly so; best first.

    Args:
        most_ratio: of the distances to the nearest and to the next (Lowe 2004).
    """
    ours, theirs = first.features, second.features
    if len(ours.points) < 2 or len(theirs.points) < 2:
        return np.zeros((0, 2)), np.zeros((0, 2))
    likeness = ours.descriptors @ theirs.descriptors.T
    best, rows = likeness.argmax(1), np.arange(len(likeness))
    mutual, nearest = likeness.argmax(0)[best] == rows, likeness[rows, best]
    likeness[rows, best] = -1
    ratio = np.sqrt(np.maximum(1 - nearest, 1e-6) / np.maximum(1 - likeness.max(1), 1e-6))
    kept = np.flatnonzero(mutual & (ratio < most_ratio))
    kept = kept[np.argsort(ratio[kept])]
    return first.rays(ours.points[kept]), second.rays(theirs.points[best[kept]])


@dataclass(frozen=True, eq=False)
class Fitted:
    """Two photos in a square, and how the second has to be moved to lie on the first."""

    start: Matrix
    """(3, 3) homography between ray coordinates from which the motion starts."""
    to_rays: Matrix
    """(3, 3) from map coordinates of the square to ray coordinates of the first."""
    pyramid: PhotoPyramid
    view: ViewPyramid
    motion: Plane
    likeness: float
    """Correlation of the two in the square that both show, 1 at best, about 0 by chance."""
    square: Square
    """Square that both show by the motion, in ray coordinates of the first."""

    @property
    def evidence(self) -> float:
        """Weight of what speaks for it; see `evidence`."""
        return evidence(self.likeness, self.square)

    def homography(self) -> Matrix:
        """Return the homography between ray coordinates."""
        return _moved(self.start, self.to_rays, self.motion)

    def overlay(self) -> Overlay:
        """Return it as exact as it gets, and how sure that is."""
        last = settled(self.pyramid, self.view, self.motion, WINDOW)  # type: ignore[arg-type]
        across = _moved(self.start, self.to_rays, last.motion)
        return Overlay(across, self.likeness, self.square, self.to_rays, last.precision)


def fitted(first: Shown, second: Shown, homography: Matrix, sides: Sequence[int] = _FINE) -> Fitted | None:
    """Refine a homography by intensities; None where the photos share too little by it, or no camera sees so.

    Args:
        sides: of the window, in pixels, one after the other.
    """
    square = shared_square(first, second, homography)
    if square is None:
        return None
    to_rays = around(square)
    pyramid = PhotoPyramid(first.seen_in(to_rays, sides[-1]))
    view = ViewPyramid(second.seen_in(homography @ to_rays, sides[-1]))
    motion, alike = Plane(UPRIGHT), 0.0
    for side in sides:
        motion, alike = refined(pyramid, view, motion, side)  # type: ignore[arg-type]
    square = shared_square(first, second, _moved(homography, to_rays, motion))
    return None if square is None else Fitted(homography, to_rays, pyramid, view, motion, alike, square)


def _moved(homography: Matrix, to_rays: Matrix, motion: Plane) -> Matrix:
    """Return the homography after a motion: the window's point p is found in the view where the start has q."""
    better = homography @ to_rays @ np.linalg.inv(UPRIGHT) @ motion.matrix @ np.linalg.inv(to_rays)
    return np.asarray(better / better[2, 2])


def shared_square(first: Shown, second: Shown, homography: Matrix) -> Square | None:
    """Return the largest square in the first's rays that both photos show; None where a camera can't see it so."""
    square = largest_square([first.to_picture, second.to_picture @ homography])
    if (
        square is None
        or square.side < _LEAST_SIDE * min(first.photo.width, first.photo.height) / first.photo.focal
    ):
        return None
    depth = homography[2] @ np.column_stack([square.corners(), np.ones(4)]).T
    determinant = np.linalg.det(homography)
    if (depth <= 0).any() or determinant <= 0:  # behind the camera, or mirrored
        return None
    scale = np.sqrt(determinant / depth**3)  # of lengths, at the corners
    return square if scale.max() < _MOST_STRETCH * scale.min() else None


def _reduced(picture: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    share = side / max(picture.shape[:2])
    if share >= 1:
        return picture
    return np.asarray(cv2.resize(picture, None, fx=share, fy=share, interpolation=cv2.INTER_AREA))
