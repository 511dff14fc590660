"""Direction of a normal map's green, told from the map itself.

The normals of a surface z = h(x, y) are the slopes p = -nx / nz = dh/dx and q = -ny / nz = dh/dy, and slopes of
one height have dp/dy = dq/dx everywhere. With green turned over the two differ in sign: their correlation
tells. Painted, filtered and compressed maps keep it at some scale, which is why several are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from neuropbr_dist.data.importer.squares import full_scale
from neuropbr_dist.materials.names import Convention

LARGEST = 1024
"""Side in pixels of the finest scale: finer ones are mostly rounding and compression."""
SMALLEST, SCALES, BLOCKS = 64, 5, 8
ENOUGH = ((0.15, 6.0), (0.25, 4.0), (0.5, 2.0))
"""Correlation and its deviation from chance that are evidence at a scale. Of 352 normal maps of public repositories
15 say OpenGL in their names: 11 are told so by their slopes, 4 are left open, none is told otherwise."""
AGAINST = (0.1, 3.0)
"""Evidence of this kind at another scale for the other convention leaves it open."""
FLAT = 0.00396
"""Green within one step of 8 bits of flat is the same in both conventions."""
_NZ = 0.1  # steeper than 84 degrees is noise


class Evidence(NamedTuple):
    """Evidence in the map itself of where green points."""

    convention: Convention | None
    """Convention that the map shows; None: it doesn't say."""
    correlation: float
    """Correlation of the slopes at the scale that says most: from -1, DirectX, to 1, OpenGL."""
    flat: bool = False
    """Green is flat throughout: either convention is right."""


def judge_convention(normals: np.ndarray) -> Evidence:
    """Tell where green points.

    Args:
        normals: (H, W, 3) encoded as (n + 1) / 2, in 0 .. 255 of uint8, 0 .. 65535 of uint16, or 0 .. 1 of float32.
    """
    top = full_scale(normals)
    green = normals[..., 1]
    if max(top / 2 - float(green.min()), float(green.max()) - top / 2) <= FLAT * top:
        return Evidence(None, 0.0, flat=True)
    found = list(_correlations(normals, float(top)))
    told = [
        r for r, z in found if any(abs(r) >= least and abs(z) >= deviation for least, deviation in ENOUGH)
    ]
    if not told:
        return Evidence(None, max((r for r, _ in found), key=abs, default=0.0))
    strongest = max(told, key=abs)
    sign = np.sign(strongest)
    if any(-sign * r >= AGAINST[0] and -sign * z >= AGAINST[1] for r, z in found):
        return Evidence(None, strongest)
    return Evidence("opengl" if sign > 0 else "directx", strongest)


def _correlations(normals: np.ndarray, top: float) -> Iterator[tuple[float, float]]:
    """Yield, for each scale, the finest first: the correlation of dp/dy and dq/dx, and in how many blocks of the map.

    The second is the sum over blocks by its spread, about normal around 0 where the two are unrelated, and 8
    where all blocks agree.
    """
    while min(normals.shape[:2]) >= 2 * LARGEST:
        normals = normals[: normals.shape[0] // 2 * 2, : normals.shape[1] // 2 * 2]
        normals = (normals[::2, ::2].astype(np.float32) + normals[1::2, 1::2]) / np.float32(2)
    nx, ny, nz = (np.float32(2 / top) * normals[..., i] - np.float32(1) for i in range(3))
    nz = np.maximum(nz, np.float32(_NZ))
    p, q = -nx / nz, -ny / nz
    for _ in range(SCALES):
        if min(p.shape) < SMALLEST:
            return
        # Both at the corners between pixels, where they are the same stencil of a height; y is up.
        across, down = p[:, 1:] + p[:, :-1], q[1:] + q[:-1]
        dp_dy, dq_dx = across[:-1] - across[1:], down[:, 1:] - down[:, :-1]
        product = _blocks(dp_dy * dq_dx)
        energy = float(np.square(dp_dy).sum() + np.square(dq_dx).sum()) / 2
        if energy > 0:
            total = float(product.sum())
            yield total / energy, total / max(float(np.sqrt(np.square(product).sum())), 1e-30)
        p, q = _halved(p), _halved(q)


def _blocks(values: np.ndarray) -> np.ndarray:
    """Return the sums of (H, W) over `BLOCKS` by `BLOCKS` parts of the picture."""
    rows = np.linspace(0, values.shape[0], BLOCKS + 1).astype(int)[:-1]
    columns = np.linspace(0, values.shape[1], BLOCKS + 1).astype(int)[:-1]
    return np.add.reduceat(np.add.reduceat(values, rows, axis=0, dtype=np.float64), columns, axis=1)


def _halved(values: np.ndarray) -> np.ndarray:
    rows, columns = values.shape[0] // 2 * 2, values.shape[1] // 2 * 2
    values = values[:rows, :columns]
    return (values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]) / np.float32(4)
