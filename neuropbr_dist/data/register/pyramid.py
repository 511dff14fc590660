"""Pictures and maps at several sides, made comparable: whatever the light, only local structure is left."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Bytes = npt.NDArray[np.uint8]

REACH = 6.0
"""Structure wider than about this many pixels is removed; each side of the pyramid shows its own."""
FINEST = 1024
"""Pictures and maps that are larger are reduced to it first: a tenth of a pixel there is a texel of 8,192."""
_WHITE, _BLACK = 250, 1
_CONTRAST_LIMIT = 3.0
_LEAST_SPREAD = 0.8  # of 255: a map below it is flat
_MAP_NOISE, _VIEW_NOISE = 1.0, 1.5  # of 255: fainter structure isn't amplified to full contrast


class MaterialPyramid:
    """A material's maps as normalised channels.

    The picture of a surface is, locally, close to a weighted sum of these: albedo, roughness, metallic, the normal's
    three components and its products. The weights depend on the light and are left to `fit`.

    Args:
        maps: uint8 (8, S, S): albedo RGB, roughness, metallic, normal XYZ.
        wrap: whether the maps repeat.
    """

    def __init__(self, maps: Bytes, wrap: bool) -> None:
        self.wrap = wrap
        self._planes = [_halved(plane) for plane in (maps[:3].mean(0, dtype=np.float32), *maps[3:8])]
        self._sides: dict[int, Array] = {}

    def raw(self, side: int) -> list[Array]:
        """Return the eight channels that a picture may show, (side, side) each, in units of a byte's steps."""
        small = [reduced(plane, side) for plane in self._planes]
        x, y = small[3] - 127.5, small[4] - 127.5
        return [*small, (x * x - y * y) / 64, x * y / 64]

    def channels(self, side: int) -> Array:
        """Return the channels that vary, (K, side, side); K is 0 for a material without texture."""
        if side not in self._sides:
            varying = [
                normalised(channel, _MAP_NOISE, self.wrap)
                for channel in self.raw(side)
                if channel.std() > _LEAST_SPREAD
            ]
            self._sides[side] = np.stack(varying) if varying else np.zeros((0, side, side), np.float32)
        return self._sides[side]


class ViewPyramid:
    """A view as a normalised picture, with a mask of what isn't clipped.

    Args:
        picture: uint8 (3, S, S).
    """

    def __init__(self, picture: Bytes) -> None:
        clipped = (picture.min(0) >= _WHITE) | (picture.max(0) <= _BLACK)
        self.gray = _halved(picture.mean(0, dtype=np.float32))
        self._usable = _halved(1 - clipped.astype(np.float32))
        self._sides: dict[int, tuple[Array, Array]] = {}

    def at(self, side: int) -> tuple[Array, Array]:
        """Return the normalised picture and its mask, (side, side) each."""
        if side not in self._sides:
            gray, usable = reduced(self.gray, side), reduced(self._usable, side)
            mask = (cv2.blur(usable, (5, 5)) > 0.9).astype(np.float32)
            self._sides[side] = normalised(gray, _VIEW_NOISE, wrap=False), mask
        return self._sides[side]


def reduced(plane: npt.NDArray, side: int) -> Array:
    """Return a plane resized to `side`, area-filtered."""
    plane = np.asarray(plane, np.float32)
    if plane.shape[0] == side:
        return plane
    return np.asarray(cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _halved(plane: npt.NDArray[Any]) -> Array:
    """Return the plane at the largest side that is ever looked at."""
    return reduced(plane, min(len(plane), FINEST))


def normalised(plane: Array, noise: float, wrap: bool) -> Array:
    """Return the plane less its local mean, over its local standard deviation, limited to a few of these."""
    detail = plane - _blurred(plane, REACH, wrap)
    spread = np.sqrt(_blurred(detail * detail, 1.5 * REACH, wrap) + noise**2)
    return np.clip(detail / spread, -_CONTRAST_LIMIT, _CONTRAST_LIMIT)


def _blurred(plane: Array, sigma: float, wrap: bool) -> Array:
    margin = int(3 * sigma) + 1
    if not wrap or margin >= plane.shape[0]:
        return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101))
    wide = cv2.copyMakeBorder(plane, margin, margin, margin, margin, cv2.BORDER_WRAP)
    return np.ascontiguousarray(cv2.GaussianBlur(wide, (0, 0), sigma)[margin:-margin, margin:-margin])
