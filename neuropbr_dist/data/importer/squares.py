"""Maps of any size -> squares of one side, in 8 or 16 bits.

The middle square is kept where a picture isn't square (or each whole square, as tiles); then
all maps take the smaller of the albedo's and the normal map's sides, or the side asked for. A map gets
smaller by the mean over areas, the albedo's in linear light, normals as vectors made unit again; larger
by linear interpolation. What needs none of this keeps its values to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.channels import (
    MAP_NAMES,
    MapName,
    decode_normals,
    encode_normals,
    linear_to_srgb,
    srgb_to_linear,
)


def squared(
    planes: Mapping[MapName, np.ndarray], size: int | None, bits: int, tiles: bool
) -> list[tuple[dict[MapName, np.ndarray], list[str]]]:
    """Return each square that is kept, at the side that is wanted, in the bits that are wanted."""
    height, width = planes["albedo"].shape[:2]
    for name, plane in planes.items():
        if abs(plane.shape[1] * height - plane.shape[0] * width) > 0.01 * plane.shape[0] * width:
            raise UserError(
                f"the {name} map is {plane.shape[1]} x {plane.shape[0]}, the albedo {width} x {height}: "
                "not the same part of the material"
            )
    side = size or min(min(planes[name].shape[:2]) for name in ("albedo", "normal"))
    boxes = _boxes(width, height, tiles)
    results = []
    for number, box in enumerate(boxes):
        notes = []
        if width != height:
            notes.append(f"square {number + 1} of {len(boxes)} of {width} x {height}" if tiles else
                         f"middle square of {width} x {height}")  # fmt: skip
        maps: dict[MapName, np.ndarray] = {}
        for name in MAP_NAMES:
            square = _crop(planes[name], box)
            if square.shape[0] != side:
                notes.append(f"{name} {square.shape[0]} to {side} px")
                square = _resized(name, square, side)
            maps[name] = np.ascontiguousarray(as_bits(square, bits))
        results.append((maps, notes))
    return results


def _boxes(width: int, height: int, tiles: bool) -> list[tuple[float, float, float, float]]:
    """Return left, top, right and bottom of each square, as shares of the picture."""
    side = min(width, height)
    count = (max(width, height) // side) if tiles else 1
    boxes = []
    for i in range(count):
        start = (max(width, height) - count * side) / 2 + i * side
        x, y = (start, 0.0) if width > height else (0.0, start)
        boxes.append((x / width, y / height, (x + side) / width, (y + side) / height))
    return boxes


def _crop(plane: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    height, width = plane.shape[:2]
    side = min(width, height)
    left = min(round(box[0] * width), width - side) if width > side else 0
    top = min(round(box[1] * height), height - side) if height > side else 0
    return plane[top : top + side, left : left + side]


def _resized(name: MapName, plane: np.ndarray, side: int) -> np.ndarray:
    """Return a resized map, float32 in 0 .. 1, by the rules of this module."""
    values = _linear(plane) if name == "albedo" else unsigned(plane)
    how = Image.Resampling.BOX if side < plane.shape[0] else Image.Resampling.BILINEAR
    bands: Sequence[np.ndarray] = [values] if values.ndim == 2 else [values[..., i] for i in range(3)]
    bands = [
        np.asarray(Image.fromarray(np.ascontiguousarray(band)).resize((side, side), how)) for band in bands
    ]
    if name == "albedo":
        return linear_to_srgb(np.stack(bands, axis=-1)).astype(np.float32)
    return normalised(np.stack(bands, axis=-1)) if name == "normal" else bands[0]


def _linear(albedo: np.ndarray) -> np.ndarray:
    """Convert sRGB to linear light; whole numbers by a table, which is many times faster."""
    if albedo.dtype.kind == "f":
        return srgb_to_linear(albedo).astype(np.float32)
    levels = np.arange(np.iinfo(albedo.dtype).max + 1, dtype=np.float64)
    return srgb_to_linear(levels / levels[-1]).astype(np.float32)[albedo]


def normalised(encoded: np.ndarray) -> np.ndarray:
    """Return normals (…, 3), encoded in 0 .. 1, at unit length."""
    vectors = decode_normals(encoded)
    length = np.sqrt(np.square(vectors).sum(axis=-1, keepdims=True))
    return encode_normals(vectors / np.maximum(length, 1e-6)).astype(np.float32)


def unsigned(values: np.ndarray) -> np.ndarray:
    """Return values as float32 in 0 .. 1."""
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False)
    return values.astype(np.float32) / np.float32(full_scale(values))


def full_scale(values: np.ndarray) -> int:
    """Return the value that stands for 1 in a file: the largest whole number of its type, or 1 of floats."""
    return np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1


def as_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Return values as uint8 or uint16, rounded."""
    if values.dtype.kind == "f":
        top = np.float32(2**bits - 1)
        return (values.clip(0, 1) * top + np.float32(0.5)).astype(np.uint8 if bits == 8 else np.uint16)
    if values.dtype == np.uint16 and bits == 8:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return values.astype(np.uint16) * 257 if values.dtype == np.uint8 and bits == 16 else values
