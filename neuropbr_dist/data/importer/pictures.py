"""Pictures of every usual format and depth -> arrays of their values as they are in the file.

PNG, JPEG, WebP, TGA, BMP and 8-bit TIFF need nothing further. EXR needs `OpenEXR`, TIFF of 16 or 32 bits
`tifffile` and `imagecodecs`: the extra `import`. (OpenCV's reader of EXR is off in some builds; Pillow
gives out wrong pixels of 16-bit TIFF whose channels lie apart.)
"""

from __future__ import annotations

import io
import logging
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from neuropbr_dist.data.files.decode import words_16_bit
from neuropbr_dist.data.files.png import SIGNATURE, inflated
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import read_bytes, require_file

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "TGA", "BMP")
"""Pillow's names of what it may open: its other readers are for files that nobody makes maps in."""
_MODES = {"1": "L", "L": "L", "LA": "LA", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA", "RGBX": "RGB"}
_EXR_ORDER = {"r": 0, "x": 0, "g": 1, "y": 1, "b": 2, "z": 2, "a": 3}


NOT_A_PICTURE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip
"""Errors that the libraries raise on a file that is cut, forged or something else."""


class Size(NamedTuple):
    """Size and depth in a file's header."""

    width: int
    height: int
    bits: int
    """Bits of a value: 8, 16 or 32."""


def read_size(path: Path) -> Size:
    """Return a picture's size and depth without decoding it.

    Raises:
        UserError: It can't be read, or what reads it isn't installed.
    """
    if path.suffix.lower() == ".exr":
        return _exr_size(path)
    require_file(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            return Size(image.width, image.height, _bits(image))
    except UnidentifiedImageError as error:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise UserError(f"{path}: not a picture that can be read, or damaged") from error
        with _tiff_page(path, path) as page:
            return Size(page.imagewidth, page.imagelength, min(32, max(page.bitspersample, 8)))
    except NOT_A_PICTURE as error:
        raise _damaged(path, error) from error


def read_picture(path: Path) -> np.ndarray:
    """Return a picture's values: (H, W, C) uint8, uint16, or float32 as stored; C is 1 to 4, alpha last.

    Palettes and single bits are expanded to 8 bits. Floats aren't clipped.

    Raises:
        UserError: It is missing, damaged, in CMYK, of a kind that isn't read, or what reads it isn't installed.
            Names the file.
    """
    pixels = _read_exr(path) if path.suffix.lower() == ".exr" else _decoded(read_bytes(path), path)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UserError(f"{path}: holds values that are no numbers")
    return pixels if pixels.ndim == 3 else pixels[..., None]


def decode_picture(data: bytes, name: str) -> np.ndarray:
    """Return the values of a file's content, as `read_picture` does: PNG, JPEG, WebP, TGA, BMP or TIFF.

    Args:
        name: of the picture, for messages.

    Raises:
        UserError: See `read_picture`.
    """
    pixels = _decoded(data, Path(name))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _decoded(data: bytes, path: Path) -> np.ndarray:
    try:
        if data.startswith(SIGNATURE):
            return _read_png(data)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.format == "TIFF" and _bits(image) > 8:
            return _read_tiff(data, path)
        image.load()
        return _eight_bits(image)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        if path.suffix.lower() in (".tif", ".tiff"):
            return _read_tiff(data, path)
        raise UserError(f"{path}: not a picture that can be read, or damaged") from error
    except NOT_A_PICTURE as error:
        raise _damaged(path, error) from error


def _read_png(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=["PNG"]):  # refuses sizes that no memory holds
        data = inflated(data)
    depth, colour = data[24], data[25]
    if (depth, colour) == (16, 4):
        # Its four bytes a pixel are filtered as those of 8-bit RGBA are, which Pillow can decode.
        header = data[12:24] + b"\x08\x06" + data[26:29]
        data = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image).view(">u2").astype(np.uint16)
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.load()
    if depth == 16:
        return words_16_bit(image, data)
    return _eight_bits(image)


def _eight_bits(image: Image.Image) -> np.ndarray:
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode not in _MODES:
        raise UserError(f"pictures of kind {image.mode} aren't read; save it as RGB or gray")
    wanted = _MODES[image.mode]
    return np.asarray(image if image.mode == wanted else image.convert(wanted))


def _bits(image: Image.Image) -> int:
    """Return the bits a value: Pillow's mode hides them for colour."""
    if image.format == "PNG":
        return 16 if image.mode.startswith("I") or _has_16_bit_tiles(image) else 8
    if image.format == "TIFF":
        bits = max(image.tag_v2.get(258, (8,)))  # type: ignore[attr-defined]  # BitsPerSample
        return 8 if bits <= 8 else 16 if bits <= 16 else 32
    return 8


def _has_16_bit_tiles(image: Image.Image) -> bool:
    return any("16" in str(tile[3]) for tile in image.tile)  # type: ignore[attr-defined]


def _read_tiff(data: bytes, path: Path) -> np.ndarray:
    with _tiff_page(io.BytesIO(data), path) as page:
        pixels = page.asarray()
        if page.planarconfig == 2 and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] > 4):
        raise UserError(f"{path}: {pixels.shape[-1]} channels; a map has 1 to 4")
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32)
    if pixels.dtype == np.uint32:
        return (pixels >> 16).astype(np.uint16)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path}: values of type {pixels.dtype} aren't read; save it with 8, 16 or 32 bits")
    return pixels


@contextmanager
def _tiff_page(source: Path | io.BytesIO, path: Path) -> Iterator[Any]:
    tifffile = _reader("tifffile", path)
    _reader("imagecodecs", path)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells of each damaged tag, we of the file
    with _decoding(path), tifffile.TiffFile(source) as file:
        page = file.pages[0]
        _check_sides(path, page.imagewidth, page.imagelength)
        yield page


def _read_exr(path: Path) -> np.ndarray:
    size = _exr_size(path)
    _check_sides(path, size.width, size.height)
    with _decoding(path), _reader("OpenEXR", path).File(str(path), separate_channels=True) as file:
        channels = {name.rsplit(".", 1)[-1].lower(): file.channels()[name].pixels for name in file.channels()}
    if len(channels) == 1:
        return next(iter(channels.values())).astype(np.float32)
    if not {"r", "g", "b"} <= channels.keys() and not {"x", "y", "z"} <= channels.keys():
        raise UserError(
            f"{path}: channels {', '.join(channels)}; one channel or R, G, B and perhaps A are read"
        )
    names = sorted((name for name in channels if name in _EXR_ORDER), key=_EXR_ORDER.__getitem__)
    return np.stack([channels[name].astype(np.float32) for name in names[:4]], axis=-1)


def _exr_size(path: Path) -> Size:
    require_file(path)
    with _decoding(path), _reader("OpenEXR", path).File(str(path), header_only=True) as file:
        low, high = file.header()["dataWindow"]
        return Size(int(high[0] - low[0]) + 1, int(high[1] - low[1]) + 1, 16)


def _check_sides(path: Path, width: int, height: int) -> None:
    """Refuse sizes that no memory holds, as Pillow does for its formats."""
    if not 0 < width * height <= 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        raise UserError(f"{path}: damaged, or too large: {width} x {height}")


def library(name: str, extra: str, whose: str) -> ModuleType:
    """Import a package that only some need; `extra` of this one installs it.

    Args:
        whose: who needs it, for the message.

    Raises:
        UserError: it isn't installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise UserError(
            f"{whose} needs {package}, which isn't installed: pip install 'neuropbr_dist[{extra}]'"
        ) from error


def _reader(name: str, path: Path) -> ModuleType:
    return library(name, "import", f"{path}: reading it")


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except NOT_A_PICTURE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return UserError(f"{path}: damaged or not readable ({' '.join(str(reason).split())})")
