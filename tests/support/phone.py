"""Pictures as a phone takes them of a built-in material: perspective, 3:4, JPEG, turned by EXIF, the focal length told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from neuropbr_dist.materials.cameras import Camera
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.materials.families.registry import material_maps
from neuropbr_dist.materials.noise import Array
from neuropbr_dist.materials.plane import PlaneCamera, encode, pinhole
from neuropbr_dist.materials.render import render
from neuropbr_dist.materials.scene import builtin_scene, encode_scene

FOCAL_35MM = 26
"""Of the phone, for a diagonal of 43.27 mm."""
_DIAGONAL_35MM = float(np.hypot(36, 24))
_ORIENTATION, _EXIF_IFD, _FOCAL_35MM_TAG = 0x0112, 0x8769, 0xA405
_TURNED_BACK = {
    1: None,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def focal_in_heights(focal_35mm: float = FOCAL_35MM) -> float:
    """Return the focal length of a 3:4 picture in parts of its longer side."""
    return focal_35mm / _DIAGONAL_35MM * 5 / 4


def true_cameras(seed: int, index: int) -> list[PlaneCamera]:
    """Return how the photos of a built-in material see its plane: from its own places, upright, 3:4."""
    return [cropped(_square_camera(place)) for place in builtin_scene(seed, index, dirty=False).cameras]


def pictures(
    seed: int, index: int, height: int, cameras: Sequence[Camera] | None = None, texels: int | None = None
) -> list[Array]:
    """Photograph a built-in material under its own light: uint8 (height, width, 3) each, upright, 3:4.

    Args:
        height: in pixels, a multiple of 8.
        cameras: other places than its own.
        texels: a side of the maps; None: two thirds of the height.
    """
    scene = builtin_scene(seed, index, dirty=False)
    maps = decode_maps(torch.from_numpy(material_maps(seed, index, texels or height * 2 // 3).copy())[None])
    lit = torch.from_numpy(encode_scene(scene))[None]
    margin, keys, found = height // 8, torch.zeros(1, 1, dtype=torch.int64), []
    with torch.no_grad():
        for k, place in enumerate(cameras or scene.cameras):  # one at a time: 3,000 px take a gigabyte
            numbers = torch.from_numpy(encode(_square_camera(place), True))[None, None]
            picture = render(maps, lit[:, k : k + 1], numbers, keys, height, dirt=False)[0, 0]
            upright = picture[:, :, margin : height - margin]
            found.append((upright * 255).round().byte().permute(1, 2, 0).numpy())
    return found


def _square_camera(place: Camera) -> PlaneCamera:
    return pinhole(place.position, place.axes(), 2 * float(np.arctan(0.5 / focal_in_heights())))


def cropped(camera: PlaneCamera) -> PlaneCamera:
    """Return the camera of the middle three quarters of a square picture's width."""
    narrower = np.array([[4 / 3, 0, -1 / 6], [0, 1, 0], [0, 0, 1.0]])
    return PlaneCamera(narrower @ camera.map_to_view, camera.eye, camera.confidence)


def save_photo(
    path: Path, pixels: Array, orientation: int = 1, focal_35mm: float | None = FOCAL_35MM, **options: object
) -> None:
    """Write a photo as a phone does: pixels as the sensor lies, and how to turn them in EXIF.

    Args:
        orientation: 1, 3, 6 or 8.
        focal_35mm: told in EXIF; None: it isn't.
        options: of Pillow's `save`.
    """
    image, turn = Image.fromarray(np.ascontiguousarray(pixels)), _TURNED_BACK[orientation]
    image = image if turn is None else image.transpose(turn)
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    if focal_35mm is not None:
        exif.get_ifd(_EXIF_IFD)[_FOCAL_35MM_TAG] = int(focal_35mm)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif.tobytes(), **({"quality": 85} if path.suffix != ".png" else {}) | options)  # type: ignore[arg-type]


def pictures_of_relief(
    relief: Callable[[Array, Array], Array],
    cameras: Sequence[Camera],
    height: int,
    seed: int = 0,
    streaks: bool = False,
) -> list[Array]:
    """Photograph a spotted surface that isn't flat, 3:4, by marching along each pixel's ray.

    Args:
        relief: height over the plane, 0 to 0.5 tiles, at x and y.
        streaks: along y in place of spots.
    """
    focal, width = focal_in_heights() * height, height * 3 // 4
    x, y = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    spots = np.random.default_rng(seed).random((256, 256, 3))
    if streaks:
        spots[:] = spots[:, :1]
    found = []
    for camera in cameras:
        right, up, forward = camera.axes()
        rays = forward + (x[..., None] * right - y[..., None] * up) / focal
        hit = np.full((height, width, 2), np.nan)
        for level in np.linspace(0.5, 0, 101):
            there = (camera.position + rays * ((level - camera.position[2]) / rays[..., 2])[..., None])[
                ..., :2
            ]
            first = np.isnan(hit[..., 0]) & (relief(there[..., 0], there[..., 1]) >= level)
            hit[first] = there[first]
        at = (hit * 48 % 256).astype(int)
        found.append((spots[at[..., 0], at[..., 1]] * 255).astype(np.uint8))
    return found


def ball(x: Array, y: Array) -> Array:
    """Return the height of a ball before a wall: no plane, as a face isn't."""
    return np.sqrt(np.maximum(0.16 - x**2 - y**2, 0))


def boxes(x: Array, y: Array) -> Array:
    """Return the height of a table with boxes on it."""
    return np.where((x % 0.4 < 0.2) & (y % 0.5 < 0.25), 0.2, 0.0)


def photograph(folder: Path, seed: int, index: int, height: int, **options: object) -> list[PlaneCamera]:
    """Write `IMG_0.jpg`, `IMG_1.jpg`, `IMG_2.jpg` of a built-in material, each turned otherwise; return `true_cameras`."""
    turned = zip(pictures(seed, index, height), (6, 8, 1), strict=True)
    for number, (picture, orientation) in enumerate(turned):
        save_photo(folder / f"IMG_{number}.jpg", picture, orientation, **options)  # type: ignore[arg-type]
    return true_cameras(seed, index)


@dataclass(frozen=True)
class Judged:
    """Found cameras beside the true ones."""

    pixels: float
    """How far the photos are off each other in the frame, in pixels of 512: mean over the frame, of the worst photo."""
    degrees: float
    """Angle between the found and the true direction to the eye, of the worst photo."""


def judge(found: Sequence[PlaneCamera | None], true: Sequence[PlaneCamera]) -> Judged:
    """Compare cameras in whatever frame they have with the true ones, modulo whole tiles."""
    to_plane, places = true_frame(found, true), {}
    for number, camera in enumerate(found):
        if camera is not None:
            places[number] = _plane_points(camera, true[number])
    first = next(iter(places.values()))
    side, apart, angles = float(np.linalg.norm(to_plane[:2, 0])), [0.0], []
    for number, points in places.items():
        away = points - first
        away -= np.round(np.median(away, axis=0))
        apart.append(float(np.linalg.norm(away, axis=1).mean()) / side * 512)
        inside = true_camera(true[number], to_plane)
        toward, expected = (_toward_eye(camera) for camera in (found[number], inside))
        angles.append(float(np.degrees(np.arccos(np.clip(toward @ expected, -1, 1)))))
    return Judged(max(apart), max(angles))


def _toward_eye(camera: PlaneCamera | None) -> Array:
    assert camera is not None and camera.eye is not None
    return np.asarray(camera.eye / np.linalg.norm(camera.eye))


def true_frame(found: Sequence[PlaneCamera | None], true: Sequence[PlaneCamera]) -> Array:
    """Return the (3, 3) similarity from the found frame's map coordinates to the true plane, as the first photo has it."""
    number = next(number for number, camera in enumerate(found) if camera is not None)
    camera = found[number]
    assert camera is not None
    points, grid = _plane_points(camera, true[number]), _grid()
    middle, moved = points.mean(0), points - points.mean(0)
    # The turn and scale that fit best (Umeyama 1991), in complex numbers.
    a, b = grid @ [1, 1j], moved @ [1, 1j]
    turn = (a.conj() @ b) / (a.conj() @ a)
    return np.array([[turn.real, -turn.imag, middle[0]], [turn.imag, turn.real, middle[1]], [0, 0, 1.0]])


def true_camera(camera: PlaneCamera, to_plane: Array) -> PlaneCamera:
    """Return a true camera in a frame that `to_plane` takes to the plane it was made for."""
    assert camera.eye is not None
    place, side = np.linalg.solve(to_plane, [*camera.eye[:2], 1.0])[:2], np.linalg.norm(to_plane[:2, 0])
    return PlaneCamera(
        camera.map_to_view @ to_plane, np.array([*place, camera.eye[2] / side]), camera.confidence
    )


def _grid(count: int = 17) -> Array:
    """Map coordinates (N, 2) all over the frame, about its middle."""
    place = np.linspace(-0.5, 0.5, count)
    return np.stack(np.meshgrid(place, -place), -1).reshape(-1, 2)


def _plane_points(found: PlaneCamera, true: PlaneCamera) -> Array:
    """Where on the true plane a photo shows what the found camera has at the frame's grid."""
    grid = np.column_stack([_grid(), np.ones(len(_grid()))])
    there = np.linalg.solve(true.map_to_view, found.map_to_view @ grid.T)
    return (there[:2] / there[2]).T
