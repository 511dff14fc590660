"""The eight channels of a material's maps: their order and meaning, and how bytes hold them.

A byte holds a value of [0, 1] as 255 times it: of an albedo in sRGB, of a normal's axis as (n + 1) / 2. What is said
here is for numpy and torch alike; torch isn't imported, so that processes which only draw or decode stay small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Floats = TypeVar("Floats", "np.ndarray", "Tensor")
MapName = Literal["albedo", "roughness", "metallic", "normal"]

ALBEDO = slice(0, 3)
"""RGB in [0, 1]."""
ROUGHNESS = slice(3, 4)
"""One channel in [0, 1]; GGX's alpha is its square."""
METALLIC = slice(4, 5)
"""One channel in [0, 1]."""
NORMAL = slice(5, 8)
"""Unit XYZ in [-1, 1]; +X to the right and +Y up in the picture (OpenGL), +Z out of the surface."""

MAP_NAMES: tuple[MapName, ...] = ("albedo", "roughness", "metallic", "normal")
MAP_SLICES = {"albedo": ALBEDO, "roughness": ROUGHNESS, "metallic": METALLIC, "normal": NORMAL}


def decode(levels: Floats) -> Floats:
    """Decode bytes' levels, floats of 0 to 255 -> [0, 1]."""
    return levels / 255


def decode_normals(stored: Floats) -> Floats:
    """Decode normals as files hold them, [0, 1] -> [-1, 1], not of unit length."""
    return stored * 2 - 1


def encode_normals(normals: Floats) -> Floats:
    """Encode normals, [-1, 1] -> [0, 1], as files hold them."""
    return (normals + 1) / 2


def as_stored(maps: Tensor) -> Tensor:
    """Return a copy of maps (..., 8, H, W), floats, with the values that files hold; not clipped to [0, 1]."""
    stored = maps.clone()
    stored[..., NORMAL, :, :] = encode_normals(maps[..., NORMAL, :, :])
    return stored


def quantise(values: np.ndarray) -> np.ndarray:
    """Quantise values, clipped to [0, 1] -> uint8, rounded."""
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def srgb_to_linear(value: np.ndarray) -> np.ndarray:
    """Decode sRGB values in [0, 1] to linear light (IEC 61966-2-1)."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(value: np.ndarray) -> np.ndarray:
    """Encode linear light in [0, 1] as sRGB (IEC 61966-2-1)."""
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * np.maximum(value, 1e-8) ** (1 / 2.4) - 0.055)
