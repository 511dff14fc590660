"""Wood, cloth, leather and paint. Each function draws one random material of its family on a tile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from neuropbr_dist.materials.families.surface import Surface, Tile, colour
from neuropbr_dist.materials.noise import Array, displaced, mix, smoothstep

_WOODS = [
    ("c79a63", "8a5a30"),
    ("8a5b3a", "4a2c1a"),
    ("d9b98a", "a97c4a"),
    ("6a4028", "2e1a10"),
    ("b4713f", "6e3a1e"),
    ("a08a70", "5c4c3c"),
]


def wood(tile: Tile) -> Surface:
    """Make boards of sawn wood: rings are the contour lines of stretched noise; knots are bumps in it."""
    light, dark = (colour(c) for c in tile.pick(_WOODS))
    rows = tile.pick([3, 4, 5, 6])
    boards = tile.bond(tile.pick([1, 1, 2]), tile.rng.random(rows))
    ox, oy = tile.each(boards, 0, 1), tile.each(boards, 0, 1)
    figure = tile.fbm((1, 5), 4, 0.4)
    for _ in range(tile.integer(0, 5)):
        kx, ky = ((a - tile.uniform(0, 1) + 0.5) % 1 - 0.5 for a in (tile.x, tile.y))
        figure = figure + tile.pick([-3, 3]) * np.exp(-((kx * 14) ** 2) - (ky * 30) ** 2)
    rings = displaced(figure, ox, oy) * tile.uniform(2.5, 5) + 0.12 * tile.fbm((3, 40), 4, 0.6)
    phase = rings % 1
    late = phase**2 * (1 - smoothstep(0.86, 1.0, phase))  # slow growth darkens, then spring starts anew
    fibre, pores = tile.fbm((6, 90), 4, 0.75), smoothstep(1.2, 2.2, tile.fbm((20, 220), 2, 0.7))
    gap = 1 - smoothstep(0.0015, 0.005, boards.edge)

    tone = tile.each(boards, 0.72, 1.15) * np.clip(1 + 0.1 * fibre, 0.5, 1.5)
    albedo = (
        mix(light, dark, np.clip(0.85 * late + 0.1 * fibre + 0.35 * pores, 0, 1)) * tone * (1 - 0.85 * gap)
    )
    varnished = tile.chance(0.5)
    relief = 0.35 if varnished else 1.0
    height = relief * (0.0012 * late + 0.0005 * fibre - 0.0012 * pores)
    height = height + tile.tilted(boards, 0.02) + 0.006 * smoothstep(0, 0.015, boards.edge) - 0.004 * gap
    sheen = tile.uniform(0.22, 0.4) if varnished else tile.uniform(0.6, 0.8)
    worn = smoothstep(0.2, 1.4, tile.fbm((2, 4), 6, 0.55))
    roughness = sheen - 0.08 * late + 0.1 * pores + 0.04 * fibre + 0.15 * worn + 0.3 * gap
    surface = Surface(height, albedo, roughness, np.zeros_like(height))
    return surface.transposed() if tile.chance(0.5) else surface


def _lift(on_top: Callable[[Array, Array], Array], thread: Array, along: Array) -> Array:
    """Return how high a thread runs, -1 .. 1, between crossings where it is on top (1) or below (0)."""
    start = np.floor(along - 0.5)
    t = along - 0.5 - start
    here, there = on_top(thread, start), on_top(thread, start + 1)
    return 2 * mix(here, there, t * t * (3 - 2 * t)) - 1


def fabric(tile: Tile) -> Surface:
    """Make woven cloth: plain, twill, satin or basket weave; plain colours, stripes or checks."""
    over, period, step, group = tile.pick(
        [(1, 2, 1, 1), (2, 4, 1, 1), (3, 4, 1, 1), (2, 3, 1, 1), (1, 2, 1, 2)]
    )
    threads = period * group * tile.integer(28 // (period * group), 48 // (period * group))
    x, y = (a % 1 * threads for a in tile.bent(0.02 / threads, 8))

    def warp_on_top(column: Array, row: Array) -> Array:
        return ((column // group + step * (row // group)) % period < over).astype(np.float32)

    column, row = np.floor(x), np.floor(y)
    # Indices wrap with the tile because `threads` is a multiple of the period.
    warp = 0.6 * np.sqrt(np.clip(1 - (2 * (x - column) - 1) ** 2, 0, 1)) + 0.4 * _lift(warp_on_top, column, y)
    weft_lift = _lift(lambda r, c: 1 - warp_on_top(c, r), row, x)
    weft = 0.6 * np.sqrt(np.clip(1 - (2 * (y - row) - 1) ** 2, 0, 1)) + 0.4 * weft_lift
    is_warp = smoothstep(-0.08, 0.08, warp - weft)
    thread_height = np.maximum(warp, weft)

    dyes = [
        "2b3a55",
        "7a2a2e",
        "c8b89a",
        "3f4a3a",
        "d8d2c6",
        "1f1f22",
        "8a6a42",
        "5a6f86",
        "a8452f",
        "b58a9a",
    ]
    colours = np.stack([tile.paint(dyes)[:, 0, 0] for _ in range(3)])
    style = tile.pick(["plain", "mixed", "stripes", "check", "check"])
    bands = np.repeat(tile.rng.integers(0, 3, 8), threads // 8 + 1)[:threads]
    along_x = bands if style in ("stripes", "check") else np.zeros(threads, int)
    along_y = bands if style == "check" else np.full(threads, int(style == "mixed"))
    warp_colour = np.moveaxis(colours[along_x][column.astype(int) % threads], -1, 0)
    weft_colour = np.moveaxis(colours[along_y][row.astype(int) % threads], -1, 0)
    fuzz, worn = tile.fbm(128, 4, 0.8), tile.fbm(4, 5, 0.55)
    shade = np.clip(0.62 + 0.4 * np.clip(thread_height, 0, 1) + 0.1 * fuzz + 0.05 * worn, 0.25, 1.4)
    albedo = mix(weft_colour, warp_colour, is_warp) * shade
    folds = 0.012 * tile.fbm(2, 3, 0.35)
    height = 0.32 / threads * thread_height + 0.0004 * fuzz + folds
    roughness = tile.uniform(0.72, 0.9) - 0.08 * thread_height + 0.03 * fuzz
    return Surface(height, albedo, roughness, np.zeros_like(height))


def leather(tile: Tile) -> Surface:
    """Make hide with grain and wrinkles, rubbed lighter and glossier where it stands out; some of it quilted."""
    count = tile.integer(34, 54)
    grain = tile.voronoi(count, jitter=0.95, at=tile.bent(0.25 / count, 2 * count // 3))
    rough, fine = tile.fbm(7, 7, 0.55), tile.fbm(90, 4, 0.7)
    scale = smoothstep(0, 0.28 / count, grain.edge)
    wrinkles = np.exp(-5 * np.abs(tile.swirled(tile.fbm(5, 4, 0.45), 0.03, 5)))
    height = (
        0.12 / count * scale * tile.each(grain, 0.6, 1.0) - 0.0025 * wrinkles + 0.004 * rough + 0.0001 * fine
    )
    stitch = seam = np.zeros_like(height)
    if tile.chance(0.4):
        side = tile.pick([2, 3, 4])
        u, v = (tile.x + tile.y) * side, (tile.x - tile.y) * side
        to_u, to_v = (np.abs(a % 1 - 0.5) for a in (u, v))  # 0.5 on the seams, 0 in the middle
        puff = np.sqrt(np.clip((1 - 4 * to_u**2) * (1 - 4 * to_v**2), 0, 1))
        seam = smoothstep(0.46, 0.5, np.maximum(to_u, to_v))
        dashes = smoothstep(-0.3, 0.1, np.sin(2 * np.pi * 9 * np.where(to_u > to_v, v, u)))
        stitch = smoothstep(0.482, 0.492, np.maximum(to_u, to_v)) * dashes
        height = height + 0.12 / side * puff + 0.003 * stitch
    hide = tile.paint(["5a3420", "2a1d18", "8a5a34", "6e1f1c", "1c1c1e", "a87848", "3a4632", "24384a"], 0.2)
    rubbed = smoothstep(-0.4, 1.6, rough + 0.4 * scale - wrinkles)
    albedo = (
        hide
        * (0.65 + 0.35 * scale)
        * np.clip(1 + 0.6 * (rubbed - 0.4) + 0.05 * fine - 0.2 * wrinkles, 0.3, 1.8)
    )
    albedo = mix(albedo * (1 - 0.5 * seam), tile.paint(["d8c8a8", "1a1a1a", "b4542a"]), stitch)
    roughness = tile.uniform(0.4, 0.58) - 0.14 * rubbed + 0.2 * (1 - scale) + 0.1 * wrinkles + 0.3 * stitch
    return Surface(height, albedo, roughness, np.zeros_like(height))


def paint(tile: Tile) -> Surface:
    """Make old gloss or matt paint, crazed and peeling off plaster or an earlier coat."""
    coats = ["4f8a8b", "d9c9a3", "a3423a", "3d5a80", "e8e4da", "6b8f5e", "c98a3d", "dcb7a8", "5b4a6b"]
    rough, fine = tile.fbm(8, 8, 0.6), tile.fbm(56, 5, 0.85)
    count = tile.integer(5, 9)
    flakes = tile.voronoi(count, jitter=0.9, at=tile.bent(0.018, 8, 6))
    limit = tile.uniform(0.2, 1.1)
    torn = tile.fbm(3, 4, 0.5) + tile.each(flakes, -0.7, 0.7) + 0.08 * rough
    inset = smoothstep(limit - 0.8, limit, torn) * 0.008
    crack = smoothstep(0.0012, 0.0035, flakes.edge - inset - 0.0008 * rough)
    keeps = (1 - smoothstep(limit, limit + 0.05, torn)) * mix(
        1, crack, smoothstep(limit - 1.4, limit - 0.9, torn)
    )
    curl = np.exp(-np.clip(flakes.edge - inset, 0, 1) / 0.012) * smoothstep(limit - 1.0, limit, torn)

    brush = tile.fbm((90, 3), 4, 0.7)
    coat = tile.paint(coats, 0.2) * np.clip(1 + 0.03 * brush + 0.05 * rough, 0.5, 1.4)
    below = tile.paint(["b8b0a4", "8a7a66", "6e6a64", "d0c8ba", "54483e"], 0.2) * np.clip(
        1 + 0.14 * rough + 0.12 * fine, 0.3, 1.8
    )
    smudged = smoothstep(0.0, 1.8, tile.fbm(4, 6, 0.6))
    albedo = mix(below, coat * (1 - 0.3 * smudged) * (1 - 0.1 * curl), keeps)
    gloss = tile.uniform(0.16, 0.5)
    roughness = mix(0.88 + 0.04 * fine, gloss + 0.2 * smudged + 0.02 * brush, keeps)
    height = mix(
        0.0016 * rough + 0.0006 * fine, 0.004 + 0.006 * curl + 0.0006 * rough + 0.00015 * brush, keeps
    )
    return Surface(height, albedo, roughness, np.zeros_like(height))
