"""PNG files -> uint8 arrays.

ISA-L inflates and Pillow decodes everything; `benchmarks/results/2026-11-24-loader.md` has the other decoders. A
damaged file must be an error that names it: on a damaged stream torchvision's `decode_png`
crashes the process (segmentation fault in libpng's error path, torchvision 0.29), and pyspng
gives out changed pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from neuropbr_dist.data.files.entries import Sample
from neuropbr_dist.data.files.png import IEND, NOT_WHOLE, SIGNATURE, inflated
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import read_bytes
from neuropbr_dist.materials.channels import MAP_NAMES, MapName

# Pillow gives freed picture memory back to the system by default, and touching new memory takes as long
# as decoding a fifth of it. Blocks are of 16 MiB.
Image.core.set_blocks_max(8)

Role = Literal["view"] | MapName
"""Use of a picture; decides which colour types are allowed."""

GRAY_NORMAL = "a gray picture; a normal map has X, Y and Z in R, G and B"
GRAY_ALPHA_16 = "16-bit gray with alpha is not read; save it without alpha"


def read_views(sample: Sample, size: int | None = None) -> np.ndarray:
    """Return the views of a sample: uint8 (3, 3, H, W), RGB, in the order `0.png`, `1.png`, `2.png`.

    Args:
        size: Side in pixels to resize to; None keeps the files' own.

    Raises:
        UserError: See `read_picture`; or the three differ in size.
    """
    pictures = [_open_picture(path, "view", size) for path in sample.views]
    _require_same_size(sample.views, pictures)
    return _planes(pictures).reshape(3, 3, pictures[0].height, pictures[0].width)


def read_maps(sample: Sample, size: int | None = None) -> np.ndarray:
    """Return the maps of a sample: uint8 (8, H, W): albedo RGB, roughness, metallic, normal XYZ.

    Normals stay encoded (n * 0.5 + 0.5 -> 0..255). After a resize they need not
    have unit length: decode and renormalise.

    Args:
        size: Side in pixels to resize to; None keeps the files' own.

    Raises:
        UserError: See `read_picture`; or the four differ in size.
    """
    return read_material(sample.maps, size)


def read_material(paths: Sequence[Path], size: int | None = None) -> np.ndarray:
    """Return the maps in four files in the order of `MAP_NAMES`, as `read_maps` does."""
    pictures = [_open_picture(path, role, size) for path, role in zip(paths, MAP_NAMES, strict=True)]
    _require_same_size(paths, pictures)
    return _planes(pictures)


def read_picture(path: Path, role: Role, size: int | None = None) -> np.ndarray:
    """Return one square picture: uint8 (3, H, W) RGB, or (1, H, W) for roughness and metallic.

    Gray views and albedo are replicated to RGB. A roughness or metallic map in RGB
    is taken where its three channels are equal. 16-bit values are scaled to 8 bits
    by rounding. Palettes are expanded. Alpha is dropped where it is opaque.

    Args:
        size: Side in pixels to resize to (bilinear, antialiased); None keeps the file's own.

    Raises:
        UserError: The file is missing, damaged, not a PNG, not square, or of a
            kind that cannot stand for `role`. Names the file and the reason.
    """
    return _planes([_open_picture(path, role, size)])


def resize(planes: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 (C, H, W) to (C, size, size), to the bit as `read_picture` resizes."""
    return np.stack([np.asarray(_resized(Image.fromarray(plane), size)) for plane in planes])


def _open_picture(path: Path, role: Role, size: int | None) -> Image.Image:
    image = open_png(path)
    if image.width != image.height:
        raise UserError(f"{path}: {image.width} x {image.height}; pictures must be square")
    image = _as_role(image, role, path)
    return image if size is None else _resized(image, size)


def _resized(image: Image.Image, size: int) -> Image.Image:
    return image if image.width == size else image.resize((size, size), Image.Resampling.BILINEAR)


def _planes(images: Sequence[Image.Image]) -> np.ndarray:
    """Return the bands of all pictures, one after another: uint8 (C, H, W)."""
    bands = [band for image in images for band in (image.split() if image.mode == "RGB" else (image,))]
    planes = np.empty((len(bands), images[0].height, images[0].width), np.uint8)
    for plane, band in zip(planes, bands, strict=True):
        plane[:] = np.asarray(band)
    return planes


def open_png(path: Path) -> Image.Image:
    """Return a fully decoded 8-bit picture, mode "L" or "RGB".

    Raises:
        UserError: The file is missing, damaged or not a PNG, or has alpha that is not opaque.
    """
    data = read_bytes(path)
    if not data.startswith(SIGNATURE):
        raise UserError(f"{path}: not a PNG file")
    # Pillow returns a picture whose last few bytes are cut off: its pixels are whole. The file isn't.
    if not data.endswith(IEND):
        raise UserError(f"{path}: {NOT_WHOLE}")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]):  # refuses sizes that no memory holds
            data = inflated(data)
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        image.load()
        return _to_8_bit(image, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path}: damaged (its header can't be read)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: damaged or not readable ({error})") from error


def _to_8_bit(image: Image.Image, data: bytes) -> Image.Image:
    """Return a picture in mode "L" or "RGB": palettes expanded, 16-bit values rounded, opaque alpha dropped."""
    depth, colour = data[24], data[25]  # of the IHDR chunk, always the first
    if depth == 16 and colour == 4:
        raise UserError(GRAY_ALPHA_16)
    if depth == 16 and "transparency" in image.info:
        raise UserError("16-bit with a transparent colour is not read; save it without transparency")
    has_alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    if has_alpha and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise UserError("has transparent pixels; save it without alpha, or fully opaque")
    image.info.pop("transparency", None)
    if depth == 16:
        return _round_16_bit(image, data)
    return _converted(image, "L" if image.mode in ("1", "L", "LA") else "RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # `convert` would copy


def _round_16_bit(image: Image.Image, data: bytes) -> Image.Image:
    words = words_16_bit(image, data).astype(np.uint32)
    # 65535 / 255 = 257; adding half of it rounds.
    colours = words[..., :3] if words.ndim == 3 else words
    return Image.fromarray(((colours + 128) // 257).astype(np.uint8))


def words_16_bit(image: Image.Image, data: bytes) -> np.ndarray:
    """Return the values of a 16-bit PNG: uint16 (H, W), or (H, W, 3 or 4) where it has colour.

    Args:
        image: decoded from `data`.
        data: the file, gray or in colour, not gray with alpha.
    """
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)
    # Pillow keeps the high byte of 16-bit RGB only. Read as little-endian, it keeps the low one.
    low = Image.open(io.BytesIO(data), formats=["PNG"])
    codec, box, offset, mode = low.tile[0]
    low.tile = [(codec, box, offset, str(mode).replace("16B", "16L"))]  # type: ignore[list-item]
    return np.asarray(image).astype(np.uint16) * 256 + np.asarray(low)


def _as_role(image: Image.Image, role: Role, path: Path) -> Image.Image:
    if role in ("view", "albedo"):
        return _converted(image, "RGB")
    if role == "normal":
        if image.mode != "RGB":
            raise UserError(f"{path}: {GRAY_NORMAL}")
        return image
    if image.mode == "L":
        return image
    red, green, blue = (np.asarray(band) for band in image.split())
    if not (np.array_equal(red, green) and np.array_equal(red, blue)):
        raise UserError(f"{path}: has colour (R, G and B differ); a {role} map has one value a pixel")
    return image.getchannel("R")


def _require_same_size(paths: Sequence[Path], pictures: Sequence[Image.Image]) -> None:
    for path, picture in zip(paths, pictures, strict=True):
        if picture.size != pictures[0].size:
            raise UserError(
                f"{path}: {_side(picture)}, but {paths[0]} is {_side(pictures[0])};"
                " set data.image_size to resize all pictures to one size"
            )


def _side(picture: Image.Image) -> str:
    return f"{picture.width} x {picture.height}"
