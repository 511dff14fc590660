"""The plane that a material is, and the cameras that see it.

Map coordinates: the tile is [-0.5, 0.5]^2, x to the right, y up, z out of the surface, the unit is one tile; pixel
(row i, column j) of an H x W map lies at ((j + .5) / W - .5, .5 - (i + .5) / H). Picture coordinates: (u, v) in
[0, 1]^2, u to the right by the width, v down by the height, pixel centres at (j + .5) / W and (i + .5) / H.

A camera takes the map's points to the picture's by a homography (Hartley and Zisserman, "Multiple View Geometry",
8.1.1). Where the plane repeats (`wrap`), cameras that differ by whole tiles are the same camera.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

ENCODED = 14
"""Numbers of an encoded camera: the nine of `map_to_view` by rows, the eye's three, confidence, wrap."""
MATRIX, EYE, CONFIDENCE, WRAP = slice(0, 9), slice(9, 12), 12, 13
"""Places of these numbers in an encoded camera. A camera that isn't known is all zeros; an eye that isn't
known is three zeros."""

_MIDDLE = np.array([0.5, 0.5, 1.0])
_LEAST_DETERMINANT = 1e-8  # of a camera scaled to 1 in the picture's middle: it would see 10,000 tiles across
_FARTHEST = 1e6  # tiles; far beyond it a batch's float32 is infinite, or has no height above the surface
_QUARTER_TURN = np.array([[0.0, -1.0], [1.0, 0.0]])
_MIRROR = np.diag([-1.0, 1.0])
_CENTRED = np.array([[1.0, 0.0, -0.5], [0.0, -1.0, 0.5], [0.0, 0.0, 1.0]])  # (u, v) to axes like the map's


@dataclass(frozen=True, eq=False)
class PlaneCamera:
    """Camera by which one picture sees the plane."""

    map_to_view: Matrix
    """(3, 3): takes the column (x, y, 1) of map coordinates to picture coordinates times a factor that is positive in front of the camera."""
    eye: Matrix | None = None
    """(3,) where the camera stands, in tiles, z above 0; None where that isn't known."""
    confidence: float = 1.0
    """From 0 to 1: how sure it is."""


def pinhole(position: Matrix, axes: Matrix, field_of_view: float, aspect: float = 1.0) -> PlaneCamera:
    """Return the camera of a pinhole.

    Args:
        position: (3,) where it stands, in tiles.
        axes: (3, 3) unit vectors, one a row: to the picture's right, to its top, and the viewing direction.
        field_of_view: angle across the picture's width, radians.
        aspect: width over height.
    """
    right, up, forward = (np.array([*axis[:2], -axis @ position]) for axis in np.asarray(axes, np.float64))
    half = np.tan(field_of_view / 2)
    rows = [0.5 * forward + right / (2 * half), 0.5 * forward - up * aspect / (2 * half), forward]
    return PlaneCamera(np.stack(rows), np.array(position, np.float64))


def project(map_to_view: Matrix, points: Matrix) -> Matrix:
    """Return picture coordinates (..., 2) of map coordinates (..., 2); NaN for what isn't in front of the camera."""
    seen = points @ map_to_view[:, :2].T + map_to_view[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(seen[..., 2:] > 0, seen[..., :2] / seen[..., 2:], np.nan)


def centre(map_to_view: Matrix) -> Matrix:
    """Return the plane's point (x, y) in the middle of the picture."""
    x, y, w = np.linalg.solve(map_to_view, _MIDDLE)
    return np.array([x, y]) / w


def shifted(camera: PlaneCamera, tiles: Matrix) -> PlaneCamera:
    """Return the camera moved by (x, y) tiles: what it saw at p, it sees at p + (x, y)."""
    back = np.array([[1.0, 0.0, -tiles[0]], [0.0, 1.0, -tiles[1]], [0.0, 0.0, 1.0]])
    eye = None if camera.eye is None else camera.eye + np.array([*tiles, 0.0])
    return replace(camera, map_to_view=camera.map_to_view @ back, eye=eye)


def canonical(camera: PlaneCamera) -> PlaneCamera:
    """Return the one whose `centre` is in [-0.5, 0.5)^2 of the cameras that are the same where the plane repeats."""
    tiles = np.floor(centre(camera.map_to_view) + 0.5)
    return shifted(camera, -tiles) if tiles.any() else camera


def scaled(camera: PlaneCamera) -> PlaneCamera:
    """Return the same camera with factor 1 at its `centre`, as the numbers of a file's matrix should be."""
    return replace(camera, map_to_view=camera.map_to_view * np.linalg.solve(camera.map_to_view, _MIDDLE)[2])


def fault_of(camera: PlaneCamera) -> str | None:
    """Return why no picture of the plane can have this camera, or None.

    A picture's width can't span more than about 10,000 tiles, nor a ten thousandth of one.
    """
    matrix, eye = camera.map_to_view, camera.eye
    if not np.isfinite(matrix).all() or (eye is not None and not np.isfinite(eye).all()):
        return "holds numbers that aren't finite"
    if not 0 <= camera.confidence <= 1:
        return f"confidence is {camera.confidence}; allowed: 0 to 1"
    if eye is not None and eye[2] <= 0:
        return f"eye is {eye.tolist()}: on or below the surface; z must be above 0"
    if eye is not None and (np.abs(eye).max() > _FARTHEST or eye[2] < 1 / _FARTHEST):
        return f"eye is {eye.tolist()}; allowed: up to {_FARTHEST:.0e} tiles away, z from {1 / _FARTHEST:.0e}"
    largest = np.abs(matrix).max()
    if largest == 0 or np.linalg.matrix_rank(matrix / largest, tol=1e-12) < 3:
        return "map_to_view can't be inverted"
    factor = np.linalg.solve(matrix / largest, _MIDDLE)[2]
    if factor <= 0:
        return "the plane in the picture's middle is behind the camera (map_to_view's third row must be positive in front)"
    determinant = np.linalg.det(matrix / largest * factor)
    if not _LEAST_DETERMINANT < abs(determinant) < 1 / _LEAST_DETERMINANT:
        return "map_to_view can't be inverted"
    if determinant > 0:
        return "map_to_view mirrors the plane (the map's y points up, the picture's v down)"
    return None


def encode(camera: PlaneCamera | None, wrap: bool) -> npt.NDArray[np.float32]:
    """Return the `ENCODED` numbers of a camera, `scaled`, as batches carry them; zeros for one that isn't known."""
    numbers = np.zeros(ENCODED, np.float32)
    if camera is not None:
        numbers[MATRIX] = scaled(camera).map_to_view.ravel()
        if camera.eye is not None:
            numbers[EYE] = camera.eye
        numbers[CONFIDENCE], numbers[WRAP] = camera.confidence, wrap
    return numbers


def turn_of_map(orientation: int) -> Matrix:
    """Return the (2, 2) matrix that turns map coordinates as a picture is turned.

    Args:
        orientation: 0 to 7: modulo 4 the quarter turns, counter-clockwise; from 4 on mirrored left to right before.
    """
    turn = np.linalg.matrix_power(_QUARTER_TURN, orientation % 4)
    return turn @ _MIRROR if orientation >= 4 else turn


def turn_of_picture(orientation: int) -> Matrix:
    """Return the (3, 3) matrix that takes picture coordinates to those in the turned picture; see `turn_of_map`."""
    turn = np.eye(3)
    turn[:2, :2] = turn_of_map(orientation)
    return np.linalg.inv(_CENTRED) @ turn @ _CENTRED
