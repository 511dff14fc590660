"""Pictures that were rendered by other conventions than this package's, and the bytes that say the same by ours.

Upstream NeuroPBR's renderer reads OpenGL normals as if they were DirectX (green down), takes albedo bytes for linear
light, and writes linear light as bytes. What such pictures show is a material with green turned over and albedo encoded
as sRGB, photographed without an sRGB curve; a network that learns to undo this would undo it in real photos, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuropbr_dist.materials.channels import linear_to_srgb


@dataclass(frozen=True)
class Conventions:
    """Departures of a set from this package's conventions."""

    flip_green: bool = False
    """Pictures are lit as if normals' green pointed down."""
    linear_albedo: bool = False
    """Pictures take albedo maps' values for linear light."""
    linear_views: bool = False
    """Pictures are linear light themselves."""

    def converted(self, role: str, planes: np.ndarray) -> np.ndarray:
        """Return a picture by this package's conventions.

        Args:
            role: `view`, `albedo`, `roughness`, `metallic` or `normal`.
            planes: uint8 (C, H, W).
        """
        if role == "normal" and self.flip_green:
            return np.stack([planes[0], turned_over(planes[1]), planes[2]])
        if (role == "albedo" and self.linear_albedo) or (role == "view" and self.linear_views):
            return as_srgb(planes)
        return planes

    def __str__(self) -> str:
        return ", ".join(name.replace("_", "-") for name, value in vars(self).items() if value)


def turned_over(green: np.ndarray) -> np.ndarray:
    """Return an axis of stored normals, of any type, pointing the other way."""
    return _top(green) - green


def as_srgb(linear: np.ndarray) -> np.ndarray:
    """Return linear values, of any type, encoded as sRGB, in their own type."""
    if linear.dtype.kind == "f":
        return linear_to_srgb(linear.clip(0, 1)).astype(linear.dtype)
    top = _top(linear)
    levels = linear_to_srgb(np.arange(int(top) + 1) / float(top)) * float(top)
    return np.rint(levels).astype(linear.dtype)[linear]


def _top(values: np.ndarray) -> np.generic:
    return values.dtype.type(np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1)
