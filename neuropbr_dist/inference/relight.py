"""The predicted material, beside the true one if it is known, under a lamp that goes round once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from neuropbr_dist.files import replacing
from neuropbr_dist.materials.bench import orbit, relit
from neuropbr_dist.monitor.figure import INK, PAPER
from neuropbr_dist.monitor.pictures import maps_to_bytes, shrink_maps

NAME = "relit.webp"
FRAMES, FRAME_MS = 36, 60
SMALLEST_SIDE = 192
"""Smaller materials are enlarged by a whole factor, pixels kept sharp."""
_GAP, _LINE = 8, 24


def write_animation(path: Path, pred: Tensor, target: Tensor | None) -> None:
    """Write an animated WebP that runs for ever; at most 384 px a material.

    Args:
        path: replaced by one rename.
        pred, target: maps (8, S, S) float, normals in [-1, 1].
    """
    materials = {"Predicted": to_bytes(pred)}
    if target is not None:
        materials["Ground truth"] = to_bytes(target)
    first, *rest = [frame(materials, turn / FRAMES) for turn in range(FRAMES)]
    with replacing(path) as part:
        first.save(
            part, format="WEBP", save_all=True, append_images=rest, duration=FRAME_MS, loop=0, quality=85, method=3
        )  # fmt: skip


def to_bytes(maps: Tensor) -> np.ndarray:
    """Convert maps (8, S, S) float -> uint8 (8, s, s) as files hold them, no larger than a look."""
    return maps_to_bytes(shrink_maps(maps.detach().float())).numpy()


def frame(materials: dict[str, np.ndarray], turn: float) -> Image.Image:
    """Return the materials side by side with their names below, the lamp after `turn` turns."""
    size = next(iter(materials.values())).shape[1]
    times = max(1, SMALLEST_SIDE // size)
    side = times * size
    picture = Image.new("RGB", (len(materials) * (side + _GAP) - _GAP, side + _LINE), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for i, (name, maps) in enumerate(materials.items()):
        x = i * (side + _GAP)
        shaded = relit(maps, orbit(turn)).repeat(times, 0).repeat(times, 1)
        picture.paste(Image.fromarray(shaded), (x, 0))
        draw.text((x + 4, side + _LINE // 2), name, fill=INK, font=font, anchor="lm")
    return picture
