"""The registry of families, and the maps of the material at (seed, index)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.families import metal, mineral, organic
from neuropbr_dist.materials.families.surface import Tile, encode
from neuropbr_dist.materials.noise import Array

FAMILIES = {
    family.__name__: family
    for family in (
        mineral.stone,
        metal.brushed_metal,
        organic.wood,
        mineral.ceramic_tiles,
        metal.rust,
        organic.fabric,
        mineral.brick,
        metal.hammered_metal,
        organic.leather,
        mineral.marble,
        organic.paint,
        metal.tread_plate,
        mineral.concrete,
        mineral.terrazzo,
        mineral.pebbles,
    )
}
"""Name to function `(Tile) -> Surface`. Consecutive indices take consecutive families."""

_FINEST_WORK = 512  # smaller tiles are drawn at least this fine and box-filtered


def random_stream(seed: int, index: int, purpose: int) -> np.random.Generator:
    """Return the random numbers of one material for one purpose (0 material, 1 scene, 2 dirt).

    Raises:
        UserError: if seed or index is negative.
    """
    if seed < 0 or index < 0:
        raise UserError(
            f"built-in materials need seed and index of 0 or more, got seed {seed}, index {index}"
        )
    return np.random.default_rng([seed, index, purpose])


def family_name(seed: int, index: int) -> str:
    """Return the family of material (seed, index): the registry's order, started at a place that the seed chooses."""
    names = list(FAMILIES)
    return names[(index + seed) % len(names)]


def check_size(size: int) -> None:
    """Raise a UserError below 4 pixels."""
    if size < 4:
        raise UserError(f"built-in materials need a size of at least 4 pixels, got {size}")


def material_maps(seed: int, index: int, size: int) -> Array:
    """Return the maps of material (seed, index), the same material at any size.

    Args:
        seed: key of the set, 0 or more.
        index: place in the set, 0 or more.
        size: side in pixels, at least 4.

    Returns:
        uint8 (8, size, size): albedo RGB (sRGB), roughness, metallic (linear), normal XYZ encoded
        as n * 0.5 + 0.5 (OpenGL: +Y up in the picture, +Z out of the surface). The tile repeats seamlessly.

    Raises:
        UserError: if seed or index is negative, or size below 4.
    """
    check_size(size)
    factor = -(-_FINEST_WORK // size)
    drawn = _drawn_small if size * factor == _FINEST_WORK else _drawn
    return encode(drawn(seed, index, size * factor), factor)


def _drawn(seed: int, index: int, size: int) -> Array:
    """Return the channels (8, size, size) of material (seed, index) before they are filtered and encoded."""
    return FAMILIES[family_name(seed, index)](Tile(size, random_stream(seed, index, 0))).channels()


_drawn_small = lru_cache(maxsize=1)(_drawn)
"""Whoever asks for the same material at another small side next, as stages do, has it without drawing it again."""
