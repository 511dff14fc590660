"""Verdict on one decoded picture: damage, and normals or maps that can't be what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from neuropbr_dist.data.files.decode import Role, read_picture
from neuropbr_dist.errors import UserError
from neuropbr_dist.kinds import fits
from neuropbr_dist.materials.channels import decode

NORMAL_LENGTH_SLACK = 0.1
"""A pixel is no unit normal when its decoded length is further than this from 1."""
NON_UNIT_SHARE = 0.05
"""Share of such pixels above which a normal map is faulty. Filtering without renormalising makes a few."""
NORMAL_MEAN_SLACK = 0.25
"""A tangent-space normal map averages (0.5, 0.5, 1); any channel further off looks like another map."""


@dataclass(frozen=True)
class PictureCheck:
    """Result of decoding one picture."""

    side: int = 0
    """Pixels; 0 where the file can't be read."""
    content: str = ""
    """Hash of the decoded pixels."""
    fault: str = ""
    note: str = ""


def is_picture_check(value: object) -> bool:
    """Return whether a value read from JSON holds the fields of a `PictureCheck`."""
    return fits(value, {"side": int, "content": str, "fault": str, "note": str})


def inspect_picture(path: Path, role: Role) -> tuple[PictureCheck, np.ndarray | None]:
    """Decode one picture and look at its pixels; None where it can't be read."""
    try:
        pixels = read_picture(path, role)
    except UserError as error:
        return PictureCheck(fault=str(error)), None
    fault = normals_fault(pixels) if role == "normal" else ""
    if role == "albedo" and looks_like_normals(pixels):
        fault = "looks swapped: an albedo map that holds unit normals"
    flat = role != "normal" and bool((pixels == pixels[:, :1, :1]).all())
    check = PictureCheck(
        side=pixels.shape[1],
        content=blake2b(pixels.data, digest_size=16).hexdigest(),
        fault=f"{path}: {fault}" if fault else "",
        note=f"{path}: one value throughout ({', '.join(map(str, pixels[:, 0, 0]))})" if flat else "",
    )
    return check, pixels


def normals_fault(pixels: np.ndarray) -> str:
    """Return why uint8 (3, H, W) is no tangent-space normal map, or ''."""
    mean = decode(pixels.mean(axis=(1, 2)))
    if np.abs(mean - (0.5, 0.5, 1.0)).max() > NORMAL_MEAN_SLACK:
        average = ", ".join(f"{channel:.2f}" for channel in mean)
        return f"looks swapped: averages ({average}), a normal map near (0.50, 0.50, 1.00)"
    share = non_unit_share(pixels)
    if share > NON_UNIT_SHARE:
        return f"{share:.0%} of its normals are not unit length (allowed: {NON_UNIT_SHARE:.0%})"
    return ""


def looks_like_normals(pixels: np.ndarray) -> bool:
    """Return whether uint8 (3, H, W) holds unit normals, as an albedo doesn't."""
    # An albedo of the normal map's own blue is no normal map: it must vary, too.
    return normals_fault(pixels) == "" and bool((pixels != pixels[:, :1, :1]).any())


def non_unit_share(pixels: np.ndarray) -> float:
    """Return the share of pixels of uint8 (3, H, W) whose decoded length is not 1 +- `NORMAL_LENGTH_SLACK`."""
    # (2p - 255)^2 in whole numbers: 255 times the decoded normal, without a float copy of the map.
    squared = sum((2 * channel.astype(np.int32) - 255) ** 2 for channel in pixels)
    low, high = (255 * (1 - NORMAL_LENGTH_SLACK)) ** 2, (255 * (1 + NORMAL_LENGTH_SLACK)) ** 2
    return float(((squared < low) | (squared > high)).mean())
