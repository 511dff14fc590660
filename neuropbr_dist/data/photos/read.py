"""A photo's file -> upright sRGB bytes and the focal length it was taken with."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageOps

from neuropbr_dist.data.files.decode import open_png
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import read_bytes

log = logging.getLogger(__name__)

HEIC = (".heic", ".heif")
SUFFIXES = (".png", ".jpg", ".jpeg", *HEIC)
LARGEST_SIDE = 4096
"""Pixels; larger photos are reduced to it."""
USUAL_FOCAL_35MM = 26.0
"""Millimetres, of a phone's main camera, for photos that don't tell theirs."""
_DIAGONAL_35MM = float(np.hypot(36, 24))  # CIPA DCG-001: equivalent lengths go by the diagonal
_MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0}  # EXIF FocalPlaneResolutionUnit
_PLAUSIBLE_35MM = (8.0, 1200.0)


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo, upright."""

    path: Path
    pixels: npt.NDArray[np.uint8]
    """(3, height, width) sRGB."""
    focal: float
    """Focal length in pixels."""
    focal_told: bool
    """Whether the file tells it; else it is `USUAL_FOCAL_35MM`."""

    @property
    def width(self) -> int:
        """Width of the picture in pixels."""
        return self.pixels.shape[2]

    @property
    def height(self) -> int:
        """Height of the picture in pixels."""
        return self.pixels.shape[1]


def read_photo(path: Path) -> Photo:
    """Read a PNG, JPEG or HEIC file: turned upright by EXIF, converted to sRGB by its ICC profile, at most 4,096 px.

    Raises:
        UserError: it can't be read, or is of another kind; names the file and the reason.
    """
    image, exif = _opened(path)
    profile, size = image.info.get("icc_profile"), image.size
    image = ImageOps.exif_transpose(image)
    # Reduced after the profile would be more exact and three times slower; a gamut's curve hardly bends between pixels.
    if max(image.size) > LARGEST_SIDE:
        share = LARGEST_SIDE / max(image.size)
        smaller = round(image.width * share), round(image.height * share)
        image = image.resize(smaller, Image.Resampling.BOX, reducing_gap=2.0)
        log.info(f"{path.name}: reduced to {image.width} x {image.height} px")
    image = _in_srgb(image, profile, path)
    in_diagonals = _focal_in_diagonals(exif, size)
    focal = (in_diagonals or USUAL_FOCAL_35MM / _DIAGONAL_35MM) * float(np.hypot(*image.size))
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    return Photo(path, pixels, focal, in_diagonals is not None)


def _opened(path: Path) -> tuple[Image.Image, Mapping[int, Any]]:
    """Return the picture as the sensor lies, "L", "RGB" or "CMYK", and its EXIF tags with the camera's."""
    suffix = path.suffix.lower()
    if suffix in HEIC:
        _require_heif(path)
    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns from 90 million pixels on; phones have 108.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            formats = ["PNG", "JPEG", *(["HEIF"] if suffix in HEIC else [])]
            image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
            header = image.getexif()
            exif = dict(header) | dict(header.get_ifd(ExifTags.IFD.Exif))
            if image.format == "PNG":
                info = image.info
                image = open_png(path)
                image.info["icc_profile"] = info.get("icc_profile")
                if orientation := header.get(ExifTags.Base.Orientation):
                    image.getexif()[ExifTags.Base.Orientation] = orientation
            else:
                image.draft(None, _reduced_to(image.size))
                image.load()
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path}: not a PNG, JPEG or HEIC file") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: more than 178 million pixels; reduce it first") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: damaged or not readable ({error})") from error
    return image, exif


def _reduced_to(size: tuple[int, int]) -> tuple[int, int]:
    share = min(1.0, LARGEST_SIDE / max(size))
    return max(1, int(size[0] * share)), max(1, int(size[1] * share))


def _require_heif(path: Path) -> None:
    if importlib.util.find_spec("pillow_heif") is None:
        raise UserError(
            f"{path}: HEIC needs pillow-heif, which isn't installed: pip install 'neuropbr_dist[photos]'; or save it as JPEG"
        )
    import pillow_heif

    pillow_heif.register_heif_opener()


def _in_srgb(image: Image.Image, profile: bytes | None, path: Path) -> Image.Image:
    """Return the picture in sRGB, whatever profile it has; one that can't be used is left out with a sentence."""
    if profile:
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(own).lower():
                converted = ImageCms.profileToProfile(
                    image, own, ImageCms.createProfile("sRGB"), outputMode="RGB"
                )
                assert converted is not None
                return converted
        except (ImageCms.PyCMSError, OSError) as error:
            log.warning(f"{path.name}: its colour profile can't be used ({error}); taken as sRGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _focal_in_diagonals(exif: Mapping[int, Any], size: tuple[int, int]) -> float | None:
    """Return the focal length in picture diagonals, as EXIF tells it; None where it doesn't, or tells nonsense."""
    equivalent = _number(exif.get(ExifTags.Base.FocalLengthIn35mmFilm))
    if equivalent is None:
        length, per_unit = (
            _number(exif.get(tag)) for tag in (ExifTags.Base.FocalLength, ExifTags.Base.FocalPlaneXResolution)
        )
        unit = _MM_PER_UNIT.get(exif.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))
        if length is None or per_unit is None or unit is None:
            return None
        equivalent = length * per_unit / unit / float(np.hypot(*size)) * _DIAGONAL_35MM
    low, high = _PLAUSIBLE_35MM
    return equivalent / _DIAGONAL_35MM if low <= equivalent <= high else None


def _number(value: Any) -> float | None:
    """Return a positive number, or None for what isn't one, as damaged EXIF holds."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if np.isfinite(number) and number > 0 else None
