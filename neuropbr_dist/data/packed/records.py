"""The bytes of a record: named arrays, each picture also at its halvings, each block of rows with a CRC-32.

    header    JSON; its length and its CRC-32 stand in the index
    padding   to a multiple of 4096 bytes; offsets count from there
    levels    plain arrays in C order, the smallest first, each at a multiple of 4096

The header of a sample entry at 512 px:

    {"views": {"dtype": "|u1", "levels": [
        {"shape": [3, 3, 256, 256], "offset": 0, "rows": 256, "crc": [9 numbers]},
        {"shape": [3, 3, 512, 512], "offset": 589824, "rows": 512, "crc": [9 numbers]}]}}

`rows` rows of one channel are a block; `crc` lists the CRC-32 of every block, a channel's from top to bottom, one
channel after another (the last block of a channel may be short). So rows of every channel can be read, checked,
without the rest.

A picture (uint8, square) has a level at its own side S and at S/2, S/4, … while that is whole and at least 256 px; a
third more bytes in all. Each level is, to the bit, what `data.image_size` makes of the picture: Pillow's antialiased
bilinear filter, on bytes. It is an area filter (every pixel weighs the same, so means stay), and it suits each channel
as training sees it: a normal's bytes are linear in its vector, so vectors are averaged, and the device renormalises
them; views and albedo are averaged as bytes, not in linear light, because bytes are what the networks, losses and
metrics compare, and because a run must get the same pictures from PNG files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from isal import isal_zlib

from neuropbr_dist.data.files.decode import resize

ALIGNMENT = 4096
"""Levels and records begin at multiples of so many bytes: whole pages for whoever maps them."""
SMALLEST_SIDE = 256
"""No halving is smaller, in pixels."""
BLOCK_BYTES = 256 << 10
"""A block has at least so many, where its channel has. It stays in a core's own cache between copy and CRC."""
LARGEST_SIDE = 1 << 20
"""A header that claims more was not written here."""


class Level(NamedTuple):
    """An array at one size."""

    dtype: str
    """The kind of its numbers, as numpy writes it: `|u1`."""
    shape: tuple[int, ...]
    """The array is (…, H, W)."""
    offset: int
    """Place of its first byte, counted from the end of the header's padding."""
    rows: int
    """A block has so many rows of a channel; the last may have fewer."""
    crcs: list[int]
    """The blocks' CRC-32."""

    @property
    def side(self) -> int:
        return self.shape[-1]


Arrays = dict[str, list[Level]]
"""The arrays of a record: each name with its levels, the smallest first."""


def level_sides(side: int) -> list[int]:
    """Return the sides at which a picture of `side` px is stored: its own, then halves down to 256 px."""
    sides = [side]
    while sides[-1] % 2 == 0 and sides[-1] // 2 >= SMALLEST_SIDE:
        sides.append(sides[-1] // 2)
    return sides


def levels_of(array: np.ndarray) -> list[np.ndarray]:
    """Return a picture (uint8, square) at all its sides, the smallest first; any other array (…, H, W) as it is."""
    *channels, height, width = array.shape
    if array.dtype != np.uint8 or height != width:
        return [np.ascontiguousarray(array)]
    planes = array.reshape(-1, height, width)
    smaller = [resize(planes, side).reshape(*channels, side, side) for side in level_sides(width)[1:]]
    return [*smaller[::-1], np.ascontiguousarray(array)]


def encode(arrays: Mapping[str, np.ndarray]) -> tuple[bytes, list[tuple[int, np.ndarray]]]:
    """Return the header of a record of `arrays`, (…, H, W) each, and its levels, each with its byte in the record."""
    described: dict[str, Any] = {}
    placed, end = [], 0
    for name, array in arrays.items():
        levels = []
        for level in levels_of(array):
            rows = block_rows(level)
            levels.append({"shape": level.shape, "offset": end, "rows": rows, "crc": block_crcs(level, rows)})
            placed.append((end, level))
            end = aligned(end + level.nbytes)
        described[name] = {"dtype": array.dtype.str, "levels": levels}
    header = json.dumps(described, separators=(",", ":")).encode()
    return header, [(aligned(len(header)) + offset, level) for offset, level in placed]


def decode_header(header: bytes) -> Arrays:
    """Return the arrays that a record's header describes.

    Raises:
        ValueError: it isn't the header of a record.
    """
    try:
        arrays = {
            name: [
                Level(array["dtype"], tuple(one["shape"]), one["offset"], one["rows"], one["crc"])
                for one in array["levels"]
            ]
            for name, array in json.loads(header).items()
        }
        sound = all(levels and all(map(_is_sound, levels)) for levels in arrays.values())
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("not the header of a record") from error
    if not sound:
        raise ValueError("not the header of a record")
    return arrays


def _is_sound(level: Level) -> bool:
    if len(level.shape) < 2 or not all(
        type(n) is int and 0 < n <= LARGEST_SIDE for n in (*level.shape, level.rows)
    ):
        return False
    *channels, height, _ = level.shape
    blocks = math.prod(channels) * -(-height // level.rows)
    return (
        type(level.offset) is int
        and 0 <= level.offset < 1 << 62
        and isinstance(level.crcs, list)
        and len(level.crcs) == blocks
    )


def block_rows(level: np.ndarray) -> int:
    """Return the rows of a block: all, or the least power of two with `BLOCK_BYTES`."""
    height, width = level.shape[-2:]
    rows = 1
    while rows * width * level.itemsize < BLOCK_BYTES:
        rows *= 2
    return min(rows, height)


def block_crcs(level: np.ndarray, rows: int) -> list[int]:
    """Return the CRC-32 of every block of (…, H, W)."""
    height, width = level.shape[-2:]
    return [
        isal_zlib.crc32(channel[row : row + rows])
        for channel in level.reshape(-1, height, width)
        for row in range(0, height, rows)
    ]


def aligned(nbytes: int) -> int:
    """Return the next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
