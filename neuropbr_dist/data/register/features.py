"""Points that a view and a material's maps have in common: SIFT (Lowe 2004), matched view to map.

A surface shows its albedo, its roughness, or the slopes of its normals lit from somewhere; so a view is matched against
each of these, and the wrong matches are left to `consensus`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from neuropbr_dist.data.register.pyramid import Array, MaterialPyramid, ViewPyramid, reduced

SIDE = 256
"""Pictures and maps are reduced to it. SIFT doubles it again; what is finer is left to `fit`."""
_MOST = 1500
_LEAST_SPREAD = 1.0  # of 255
_CONTRAST, _EDGE = 0.01, 20
_MAP_MARGIN = SIDE // 8  # a repeating map's features reach over its border
_SEEN = (0, 1, 3, 4, 5)  # of `MaterialPyramid.raw`: albedo, roughness, normal
_FLIPPED = (3, 4)  # these are also lit from the other side


@dataclass(frozen=True)
class Features:
    """Points of one picture."""

    points: Array
    """(N, 2) from the picture's left and top, in parts of its side."""
    angles: Array
    """(N,) orientation, radians, clockwise from the right."""
    scales: Array
    """(N,) in parts of the picture's side."""
    descriptors: Array
    """(N, 128), unit length."""


@dataclass(frozen=True)
class Matches:
    """Pairs of a view's point and a map's."""

    view: Array
    """(N, 2) picture coordinates."""
    plane: Array
    """(N, 2) x to the right and y *down*, in tiles from the map's middle."""
    turn: Array
    """(N,) by how much the map's point is turned in the view, radians, clockwise."""
    scale: Array
    """(N,) size in the view, in parts of the picture, over size on the map, in tiles."""
    quality: Array
    """(N,) from 0 to 1: likeness, and how much better it is than the next best."""


def map_features(material: MaterialPyramid) -> list[Features]:
    """Return the features of each of the maps that may be seen."""
    channels = material.raw(SIDE)
    shown = [channels[k] for k in _SEEN] + [255 - channels[k] for k in _FLIPPED]
    margin = _MAP_MARGIN if material.wrap else 0
    return [_of_map(channel, margin) for channel in shown if channel.std() > _LEAST_SPREAD]


def _of_map(channel: Array, margin: int) -> Features:
    wide = np.pad(channel, margin, mode="wrap") if margin else channel
    found = detect(wide)
    share = wide.shape[0] / SIDE
    points = found.points * share - margin / SIDE
    own = ((points >= 0) & (points < 1)).all(1)
    return Features(points[own], found.angles[own], found.scales[own] * share, found.descriptors[own])


def view_features(view: ViewPyramid) -> Features:
    """Return the features of a view."""
    return detect(reduced(view.gray, SIDE))


def detect(plane: Array, most: int = _MOST) -> Features:
    """Return the SIFT features of a plane with values up to 255, made independent of local brightness and contrast.

    Of a plane that isn't square, points and scales are in parts of its height.

    Args:
        most: the strongest so many are kept.
    """
    side = plane.shape[0]
    sift = cv2.SIFT.create(nfeatures=most, contrastThreshold=_CONTRAST, edgeThreshold=_EDGE)
    points, descriptors = sift.detectAndCompute(_equalised(plane), None)
    if descriptors is None:
        return Features(*(np.zeros(shape, np.float32) for shape in ((0, 2), 0, 0, (0, 128))))
    # RootSIFT (Arandjelovic and Zisserman 2012).
    rooted = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-6))
    places = np.array([point.pt for point in points], np.float32)
    angles = np.radians([point.angle for point in points]).astype(np.float32)
    scales = np.array([point.size for point in points], np.float32)
    return Features((places + 0.5) / side, angles, scales / side, rooted.astype(np.float32))


def _equalised(plane: Array) -> npt.NDArray[np.uint8]:
    detail = plane - cv2.GaussianBlur(plane, (0, 0), SIDE / 32, borderType=cv2.BORDER_REFLECT_101)
    spread = (
        np.sqrt(
            cv2.GaussianBlur(
                np.asarray(detail * detail, np.float32), (0, 0), SIDE / 20, borderType=cv2.BORDER_REFLECT_101
            )
        )
        + 1.5
    )
    return np.clip(detail / spread * 48 + 128, 0, 255).astype(np.uint8)


def match(view: Features, maps: list[Features]) -> Matches:
    """Return, for each of a view's points, the most alike point of each map."""
    parts = [_matched(view, features) for features in maps if len(features.points) > 1 and len(view.points)]
    if not parts:
        return Matches(*(np.zeros(shape, np.float32) for shape in ((0, 2), (0, 2), 0, 0, 0)))
    return Matches(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _matched(view: Features, features: Features) -> tuple[Array, ...]:
    likeness = view.descriptors @ features.descriptors.T
    best = likeness.argmax(1)
    rows = np.arange(len(best))
    first = likeness[rows, best]
    likeness[rows, best] = -1
    apart = np.sqrt(np.maximum(1 - first, 1e-6) / np.maximum(1 - likeness.max(1), 1e-6))  # Lowe's ratio
    return (
        view.points,
        features.points[best] - 0.5,
        view.angles - features.angles[best],
        view.scales / features.scales[best],
        np.clip(first, 0, 1) * (1.05 - apart),
    )
