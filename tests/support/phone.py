"""Pictures as a phone takes them of a built-in material: perspective, 3:4, JPEG, turned by EXIF, the focal length told."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Shot:
    """A picture and how it was taken."""

    pixels: Array
    """uint8 (height, width, 3), upright."""
    camera: PlaneCamera
    """The true one, of the upright picture."""


def focal_in_heights(focal_35mm: float = FOCAL_35MM) -> float:
    """Return the focal length of a 3:4 picture in parts of its longer side."""
    return focal_35mm / _DIAGONAL_35MM * 5 / 4


def shots(
    seed: int, index: int, height: int, cameras: Sequence[Camera] | None = None, texels: int | None = None
) -> list[Shot]:
    """Photograph a built-in material, upright, 3:4, under its own light, from its own places.

    Args:
        height: in pixels, a multiple of 4.
        cameras: other places.
        texels: a side of the maps; None: two thirds of the height.
    """
    scene = builtin_scene(seed, index, dirty=False)
    field = 2 * np.arctan(0.5 / focal_in_heights())
    seen = [pinhole(c.position, c.axes(), field) for c in cameras or scene.cameras]
    maps = decode_maps(torch.from_numpy(material_maps(seed, index, texels or height * 2 // 3).copy())[None])
    numbers = torch.from_numpy(np.stack([encode(camera, True) for camera in seen]))[None]
    lit = torch.from_numpy(encode_scene(scene))[None][:, : len(seen)]
    margin, found = height // 8, []
    with torch.no_grad():
        for k, camera in enumerate(seen):  # one at a time: a picture of 3,000 px takes a gigabyte
            keys = torch.zeros(1, 1, dtype=torch.int64)
            picture = render(maps, lit[:, k : k + 1], numbers[:, k : k + 1], keys, height, dirt=False)[0, 0]
            upright = picture[:, :, margin : height - margin]
            pixels = (upright * 255).round().byte().permute(1, 2, 0).numpy()
            found.append(Shot(pixels, cropped(camera)))
    return found


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
    image.save(path, exif=exif, **({"quality": 85} if path.suffix != ".png" else {}) | options)  # type: ignore[arg-type]


def photograph(folder: Path, seed: int, index: int, height: int, **options: object) -> list[Shot]:
    """Write `IMG_0.jpg`, `IMG_1.jpg` and `IMG_2.jpg` of a built-in material; each turned otherwise. Return the shots."""
    found = shots(seed, index, height)
    for number, (shot, orientation) in enumerate(zip(found, (6, 8, 1), strict=True)):
        save_photo(folder / f"IMG_{number}.jpg", shot.pixels, orientation, **options)  # type: ignore[arg-type]
    return found
