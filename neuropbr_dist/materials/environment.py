"""Pictures of real surroundings (.hdr, .exr; latitude and longitude), blurred beforehand for every roughness.

A renderer asks for the light around a mirrored direction, blurred as the surface's roughness blurs it (the first sum of
the split-sum approximation, Karis 2013), and for the irradiance at a normal. Both are looked up in a small stack.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.errors import UserError
from neuropbr_dist.files import read_bytes, require_file

ROUGHNESS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Roughness of each of the stack's blurred levels; irradiance is one level more."""
LEVELS = len(ROUGHNESS) + 1
HEIGHT = 128
"""Rows of each level; twice as many columns, and one more to each side."""
SUFFIXES = (".hdr", ".exr")
_BLURRED = 64  # rows of the levels that are blurred, before they are enlarged
_SMALLEST = 32
_LARGEST = 8192
_SIZE = re.compile(rb"-Y (\d{1,9}) \+X (\d{1,9})")


def read_environments(folder: str | Path) -> Tensor:
    """Return the pictures of a folder, by name: float32 (E, `LEVELS`, 3, `HEIGHT`, 2 * `HEIGHT` + 2).

    The first row is straight above the plane, columns go once round it. Each has a mean irradiance of pi on the plane.
    What is below the horizon isn't used: the plane hides it, and its light is the plane's own.

    Raises:
        UserError: the folder can't be read or holds no such picture; or one that can't be read, isn't twice as wide as
            high, is smaller than 64 x 32 or larger than 16384 x 8192, holds NaN or infinity, or is dark.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of environments")
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise UserError(f"{folder}: can't be read: {error.strerror}") from error
    if not paths:
        raise UserError(f"{folder}: no {' or '.join(SUFFIXES)} in it")
    return torch.stack([prefiltered(torch.from_numpy(read_panorama(path)), path) for path in paths])


def read_panorama(path: Path) -> np.ndarray:
    """Return a picture's linear light, float32 (3, H, W) with W = 2 H.

    Raises:
        UserError: see `read_environments`.
    """
    pixels = read_hdr(path) if path.suffix.lower() == ".hdr" else _read_exr(path)
    if not np.isfinite(pixels).all():
        raise UserError(f"{path}: holds NaN or infinity")
    return np.ascontiguousarray(np.maximum(pixels, 0).transpose(2, 0, 1), np.float32)


def read_hdr(path: Path) -> np.ndarray:
    """Return the linear RGB, float32 (H, W, 3), of a Radiance picture (Ward 1991, "Real Pixels", run-length encoded or not).

    Raises:
        UserError: it is no such picture, is cut off, holds XYZ, or has another size or order of rows than
            `read_environments` takes.
    """
    header, _, rest = read_bytes(path).partition(b"\n\n")
    line, _, data = rest.partition(b"\n")
    size = _SIZE.fullmatch(b" ".join(line[:40].split()))
    if not header.startswith((b"#?RADIANCE", b"#?RGBE")) or b"FORMAT=32-bit_rle_rgbe" not in header:
        raise UserError(f"{path}: no Radiance picture of 32-bit_rle_rgbe")
    if not size:
        raise UserError(f"{path}: size {line[:40]!r}; rows from top to bottom (-Y H +X W) are read")
    height, width = int(size[1]), int(size[2])
    _check_size(path, height, width)
    try:
        rgbe = _scanlines(memoryview(data), height, width)
    except (IndexError, ValueError) as error:
        raise UserError(f"{path}: damaged or cut off ({error})") from error
    scale = np.ldexp(np.float32(1), rgbe[..., 3].astype(np.int32) - 136)
    return rgbe[..., :3] * np.where(rgbe[..., 3:] > 0, scale[..., None], np.float32(0))


def _scanlines(data: memoryview, height: int, width: int) -> np.ndarray:
    """Return the bytes (H, W, 4) of a Radiance picture's rows."""
    if not (8 <= width < 0x8000 and data[0] == data[1] == 2 and data[2] < 128):
        return np.frombuffer(data[: height * width * 4], np.uint8).reshape(height, width, 4)
    rows, at = np.empty((height, 4, width), np.uint8), 0
    for row in rows:
        if data[at] != 2 or data[at + 1] != 2 or (data[at + 2] << 8 | data[at + 3]) != width:
            raise ValueError("a row doesn't begin as it should")
        at += 4
        for channel in row:
            x = 0
            while x < width:
                count = data[at]
                if count > 128:  # a run of one value
                    count -= 128
                    channel[x : x + count], used = data[at + 1], 2
                else:
                    channel[x : x + count], used = (
                        np.frombuffer(data[at + 1 : at + 1 + count], np.uint8),
                        count + 1,
                    )
                if count == 0 or x + count > width:
                    raise ValueError("a run doesn't fit its row")
                x, at = x + count, at + used
    return rows.transpose(0, 2, 1)


def _check_size(path: Path, height: int, width: int) -> None:
    """Refuse what is no panorama, and what a header alone makes too large for any memory."""
    if width != 2 * height or not _SMALLEST <= height <= _LARGEST:
        raise UserError(
            f"{path}: {width} x {height} px; latitude-longitude pictures are twice as wide as high,"
            f" from {2 * _SMALLEST} x {_SMALLEST} to {2 * _LARGEST} x {_LARGEST}"
        )


def _read_exr(path: Path) -> np.ndarray:
    require_file(path)
    try:
        openexr = import_module("OpenEXR")
    except ImportError as error:
        raise UserError(
            f"{path} needs OpenEXR, which isn't installed: pip install 'neuropbr_dist[import]'"
        ) from error
    try:
        with openexr.File(str(path), header_only=True) as file:
            low, high = (corner.tolist() for corner in file.header()["dataWindow"])
        _check_size(path, high[1] - low[1] + 1, high[0] - low[0] + 1)
        with openexr.File(str(path), separate_channels=True) as file:
            channels = {name.lower(): channel.pixels for name, channel in file.channels().items()}
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: can't be read: {error}") from error
    if not {"r", "g", "b"} <= channels.keys():
        raise UserError(f"{path}: channels {', '.join(channels)}; R, G, B are read")
    return np.stack([np.asarray(channels[name], np.float32) for name in "rgb"], axis=-1)


def prefiltered(panorama: Tensor, name: object = "environment") -> Tensor:
    """Return the stack of one picture: (`LEVELS`, 3, `HEIGHT`, 2 * `HEIGHT` + 2), see `read_environments`.

    Args:
        panorama: (3, H, 2 H) linear light.
        name: of the picture, for the message.

    Raises:
        UserError: its upper half is dark.
    """
    sharp, coarse = (_above_twice(_resized(panorama, height)) for height in (HEIGHT, _BLURRED))
    towards, solid = directions(_BLURRED)
    above = coarse * (towards[2] > 0)
    received = (above * towards[2] * solid).sum((1, 2))
    if not received.mean() > 0:
        raise UserError(f"{name}: dark above the horizon")
    levels = [sharp, *(_blurred(coarse, alpha=r * r) for r in ROUGHNESS[1:]), _irradiance(above)]
    stack = torch.stack([_resized(level, HEIGHT) for level in levels]).clamp_min(0) * (
        math.pi / received.mean()
    )
    return F.pad(stack, (1, 1, 0, 0), mode="circular")


def directions(height: int) -> tuple[Tensor, Tensor]:
    """Return the unit directions (3, H, W) of a picture's pixels, and the solid angles (H, W) that they take."""
    down = (torch.arange(height) + 0.5) / height * math.pi
    round_ = (torch.arange(2 * height) + 0.5) / height * math.pi - math.pi
    polar, azimuth = torch.meshgrid(down, round_, indexing="ij")
    towards = torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()])
    return towards, polar.sin() * (math.pi / height) ** 2


def _resized(picture: Tensor, height: int) -> Tensor:
    size = (height, 2 * height)
    if picture.shape[-2] >= height:
        return F.interpolate(picture[None], size=size, mode="area")[0]
    wrapped = F.pad(picture[None], (1, 1, 0, 0), mode="circular")
    wide = F.interpolate(
        wrapped, size=(height, (picture.shape[-1] + 2) * height // picture.shape[-2]), mode="bilinear"
    )
    margin = (wide.shape[-1] - 2 * height) // 2
    return wide[0, :, :, margin : margin + 2 * height]


def _above_twice(picture: Tensor) -> Tensor:
    """Return the upper half and its mirror image below: a blur near the horizon is not to take in what is hidden."""
    upper = picture[:, : picture.shape[1] // 2]
    return torch.cat([upper, upper.flip(1)], dim=1)


def _blurred(picture: Tensor, alpha: float) -> Tensor:
    """Return the picture averaged by the GGX lobe of a surface that is looked at from its normal."""

    def weight(cosine: Tensor) -> Tensor:
        half = (1 + cosine) / 2  # the squared cosine to the half vector
        return cosine.clamp_min(0) / (half * (alpha**2 - 1) + 1) ** 2

    return _gathered(picture, weight) / _gathered(torch.ones_like(picture), weight)


def _irradiance(picture: Tensor) -> Tensor:
    return _gathered(picture, lambda cosine: cosine.clamp_min(0))


def _gathered(picture: Tensor, weight: Callable[[Tensor], Tensor]) -> Tensor:
    """Return for each direction the integral of a picture's light with a weight by the cosine between the two.

    A turn about the vertical shifts columns: it is a convolution along the rows, done by FFT.
    """
    towards, solid = directions(picture.shape[1])
    z = towards[2, :, 0]
    side = (1 - z**2).sqrt()
    turn = torch.arange(picture.shape[2]) * (2 * math.pi / picture.shape[2])
    cosine = (
        z[:, None, None] * z[:, None] + side[:, None, None] * side[:, None] * turn.cos()
    )  # (to, from, turn)
    kernel = torch.fft.rfft(weight(cosine.clamp(-1, 1)) * solid[:, :1])
    light = torch.fft.rfft(picture)
    return torch.fft.irfft(torch.einsum("oik,cik->cok", kernel, light), n=picture.shape[2])
