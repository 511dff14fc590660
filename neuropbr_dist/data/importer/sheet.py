"""Contact sheets: each material's maps beside each other, and how it looks under a lamp at the upper left.

Under that lamp bumps have their light at the upper left; where they look like dents, green points the wrong way.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from neuropbr_dist.files import read_bytes, replacing
from neuropbr_dist.materials.bench import orbit, relit
from neuropbr_dist.materials.channels import MAP_NAMES, MapName

THUMB = 128
"""Side in pixels of a map in a strip."""
COLUMNS, ROWS = 2, 12
"""Materials on a sheet."""
TITLE = 20
SHEET = "contact_sheet_{}.jpg"
_LAMP = 3 / 8  # of a turn from the right over the top: the upper left


def write_strip(path: Path, maps: Mapping[MapName, np.ndarray]) -> None:
    """Write albedo, roughness, metallic, normal and the lit material beside each other, small.

    Raises:
        OSError: it can't be written.
    """
    small = [_thumb(maps[name]) for name in MAP_NAMES]
    planes = np.concatenate([small[0], small[1][..., :1], small[2][..., :1], small[3]], axis=-1).transpose(
        2, 0, 1
    )
    lit = relit(np.ascontiguousarray(planes), orbit(_LAMP))
    with replacing(path) as temporary:
        Image.fromarray(np.concatenate([*small, lit], axis=1)).save(temporary, quality=90)


def write_sheets(dest: Path, strips: Sequence[tuple[str, Path]]) -> None:
    """Write as many sheets as the materials need; those of an earlier call go.

    Args:
        strips: name and `write_strip`'s picture of each material.

    Raises:
        OSError: they can't be written.
    """
    for old in dest.glob(SHEET.format("*")):
        old.unlink()
    a_sheet = COLUMNS * ROWS
    for start in range(0, len(strips), a_sheet):
        sheet = _sheet(strips[start : start + a_sheet])
        with replacing(dest / SHEET.format(start // a_sheet + 1)) as temporary:
            sheet.save(temporary, quality=90)


def _sheet(strips: Sequence[tuple[str, Path]]) -> Image.Image:
    columns = min(COLUMNS, len(strips))
    rows = -(-len(strips) // columns)
    width, height = (len(MAP_NAMES) + 1) * THUMB, THUMB + TITLE
    sheet = Image.new("RGB", (columns * (width + TITLE), rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for number, (name, path) in enumerate(strips):
        x, y = number // rows * (width + TITLE), number % rows * height
        draw.text((x + 4, y + 3), name, fill="black", font=font)
        with Image.open(io.BytesIO(read_bytes(path))) as strip:
            sheet.paste(strip, (x, y + TITLE))
    return sheet


def _thumb(pixels: np.ndarray) -> np.ndarray:
    """Return a small picture, uint8 (THUMB, THUMB, 3)."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    step = max(1, len(pixels) // (4 * THUMB))  # every pixel of a thumbnail is of 16 at least
    image = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step]))
    return np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX).convert("RGB"))
