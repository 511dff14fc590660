"""Stone and what is made of it. Each function draws one random material of its family on a tile."""

from __future__ import annotations

import numpy as np

from neuropbr_dist.materials.families.surface import Surface, Tile, colour
from neuropbr_dist.materials.noise import displaced, mix, smoothstep

_ROCK = ["8a8378", "6f6a64", "a0968a", "7d7f82", "94806c", "5f5a58", "b0a592"]
_EARTH = ["4a3a2a", "5b4a36", "3a3028", "6a5a48"]
_MOSS = ["4d5a22", "5c6a2c", "3c4a1e"]
_MORTAR = ["b8b0a4", "9a948a", "c9c2b4", "7f7a74"]


def stone(tile: Tile) -> Surface:
    """Make flagstones or cobbles: leaning, domed stones; earth and sometimes moss between them."""
    count, gap = tile.integer(4, 8), tile.uniform(0.006, 0.014)
    stones = tile.voronoi(count, jitter=0.8, at=tile.bent(0.012, 6, 6))
    rough, fine = tile.fbm(6, 8, 0.62), tile.fbm(24, 6, 0.8)
    body = smoothstep(0.4 * gap, 1.6 * gap, stones.edge + 0.15 * gap * fine)
    dome = 1 - (1 - smoothstep(0, 0.8, stones.inward())) ** 2
    earth = 0.002 * tile.fbm(32, 5, 0.6)
    relief = 0.10 / count * dome + tile.tilted(stones, 0.08) + tile.each(stones, 0, 0.008) + 0.0022 * rough
    height = mix(earth, relief + 0.006, body)

    base = mix(tile.paint(_ROCK, 0.2), tile.each_colour(stones, _ROCK, 0.25), tile.uniform(0.3, 0.9))
    grain = np.clip(1 + 0.16 * rough + 0.14 * fine, 0.3, 1.8)
    soil = tile.paint(_EARTH) * np.clip(1 + 0.25 * fine, 0.3, 2)
    albedo = mix(soil, base * grain * (0.75 + 0.25 * dome), body)
    roughness = mix(0.95, tile.uniform(0.5, 0.8) + 0.06 * rough, body)
    if tile.chance(0.4):
        moss = (1 - smoothstep(0, 0.045, stones.edge + 0.012 * fine)) * smoothstep(-0.4, 0.7, tile.fbm(3, 4))
        height = height + 0.004 * moss * (1 + 0.4 * fine)
        albedo = mix(albedo, tile.paint(_MOSS, 0.25) * np.clip(1 + 0.35 * fine, 0.2, 2), moss)
        roughness = mix(roughness, 1.0, moss)
    return Surface(height, albedo, roughness, np.zeros_like(height))


def pebbles(tile: Tile) -> Surface:
    """Make a bed of round pebbles of two sizes in sand; sometimes wet: darker and smoother."""
    count = tile.integer(8, 13)
    sand = 0.0015 * tile.fbm(48, 5, 0.65)
    small = tile.voronoi(2 * count, jitter=0.9, at=tile.bent(0.004, 12))
    large = tile.voronoi(count, jitter=0.9, at=tile.bent(0.009, 8))
    missing = tile.each(large, 0, 1) < 0.4
    fine, rough = tile.fbm(64, 5, 0.6), tile.fbm(14, 6, 0.5)

    def domes(cells):
        flat = np.clip(cells.inward() / 0.83 - 0.2, 0, 1)
        return np.sqrt(1 - (1 - flat) ** 2)

    low, high = domes(small), np.where(missing, 0, domes(large))
    is_high, cover = smoothstep(0.0, 0.3, high), smoothstep(0.0, 0.3, np.maximum(low, high))
    bed = mix(sand, 0.16 / count * low, smoothstep(0.0, 0.3, low))
    height = mix(bed, 0.32 / count * high, is_high) + 0.0006 * rough
    palette = [tile.pick(_ROCK) for _ in range(5)] + [tile.pick(["c8beb0", "5a4a42", "9a7058"])]
    stones = mix(tile.each_colour(small, palette, 0.3), tile.each_colour(large, palette, 0.3), is_high)
    albedo = mix(tile.paint(["a89878", "6a5c4a", "857662"]) * np.clip(1 + 0.3 * fine, 0.3, 2), stones, cover)
    albedo = albedo * np.clip(1 + 0.12 * rough + 0.06 * fine, 0.3, 1.7) * mix(0.55, 1, np.maximum(low, high))
    roughness = mix(0.95, tile.uniform(0.4, 0.7) + 0.05 * rough, cover)
    if tile.chance(0.35):
        albedo, roughness = albedo * 0.55, mix(roughness * 0.6, 0.22, cover)
    return Surface(height, albedo, roughness, np.zeros_like(height))


def brick(tile: Tile) -> Surface:
    """Make a brick wall: running or stack bond, chipped edges, some bricks burnt, mortar set back."""
    rows, columns = tile.pick([(6, 2), (8, 3), (8, 4), (10, 4), (12, 5)])
    shift = tile.pick([0.5, 0.5, 0.5, 0.33, 0.0])
    joint = 0.055 / rows * tile.uniform(0.8, 1.5)
    at = tile.bent(0.0022, 10, 5)
    bricks = tile.bond(
        columns, [shift * (r % (2 if shift == 0.5 else 3)) for r in range(rows)], 2 * joint, at
    )
    rough, fine = tile.fbm(9, 8, 0.6), tile.fbm(40, 5, 0.8)
    chips = 1.3 * joint * smoothstep(1.0, 2.2, tile.fbm(14, 5, 0.6))
    body = smoothstep(0.6 * joint, 1.7 * joint, bricks.edge - chips)
    face = 0.010 + tile.each(bricks, -0.002, 0.003) + tile.tilted(bricks, 0.03) + 0.0012 * rough
    height = mix(0.0012 * fine, face - 0.0006 * smoothstep(0.8, 1.8, fine), body)

    clay = tile.pick(
        [["9c4a32", "8a3e2c", "b05c3e"], ["a8704c", "b98258"], ["cfc4b0", "bfb29c"], ["5a4038", "6b4a3e"]]
    )
    bricks_colour = tile.each_colour(bricks, clay, 0.22) * np.where(tile.each(bricks, 0, 1) > 0.87, 0.5, 1)
    faces = bricks_colour * np.clip(1 + 0.14 * rough + 0.12 * fine, 0.3, 1.8)
    mortar = tile.paint(_MORTAR) * np.clip(1 + 0.12 * fine, 0.4, 1.6)
    albedo = mix(mortar, faces, body)
    roughness = mix(0.95, tile.uniform(0.62, 0.85) + 0.05 * rough, body)
    if tile.chance(0.25):  # a coat of old whitewash, gone where the wall is worn
        coat = smoothstep(-0.6, 0.1, tile.fbm(4, 7, 0.6) + 0.25 * fine) * (0.4 + 0.6 * body)
        albedo = mix(albedo, tile.paint(["e4e0d6", "d8d4cc"]), 0.9 * coat)
        roughness = mix(roughness, 0.7, coat)
    return Surface(height, albedo, roughness, np.zeros_like(height))


def ceramic_tiles(tile: Tile) -> Surface:
    """Make glazed tiles, square, honeycomb or as a chequer of two glazes, with rough grout."""
    kind = tile.pick(["square", "chequer", "honeycomb", "subway"])
    if kind == "honeycomb":
        columns = tile.pick([6, 7, 9])
        tiles = tile.voronoi(columns, 2 * round(columns / np.sqrt(3)), jitter=0.0, stagger=True)
    else:
        columns, rows = {"subway": (3, 8)}.get(kind, (tile.pick([4, 6, 8]),) * 2)
        tiles = tile.bond(columns, [0.5 * (r % 2) * (kind == "subway") for r in range(rows)], 0.06 / rows)
    joint = 0.035 / columns
    body = smoothstep(0.6 * joint, 1.4 * joint, tiles.edge)
    pillow = smoothstep(joint, 5 * joint, tiles.edge)
    wave, fine = tile.fbm(8, 3, 0.4), tile.fbm(48, 5, 0.6)
    height = mix(0.0008 * fine, 0.005 + 0.005 * pillow + tile.tilted(tiles, 0.025) + 0.0005 * wave, body)

    glazes = [
        "e8e6de",
        "2f5d73",
        "1f2b38",
        "8fb0a6",
        "b4472e",
        "d9a441",
        "23402f",
        "ccd6dc",
        "7a2f3a",
        "3a6ea5",
    ]
    first, second = tile.paint(glazes), tile.paint(glazes)
    if kind == "chequer":
        odd = (tiles.label + tiles.label // columns) % 2
        glaze = mix(first, second, odd.astype(np.float32))
    else:
        accent = tile.each(tiles, 0, 1) < tile.pick([0.0, 0.0, 0.15, 0.3])
        glaze = np.where(accent, second, first)
    glaze = glaze * tile.each(tiles, 0.86, 1.1) * np.clip(1 + 0.05 * wave, 0.7, 1.3)
    grout = tile.paint(["d0ccc4", "8e8a84", "4c4a48"]) * np.clip(1 + 0.12 * fine, 0.4, 1.6)
    albedo = mix(grout, glaze, body)
    worn = smoothstep(0.5, 1.6, tile.fbm(4, 6, 0.55))
    roughness = mix(0.9, tile.uniform(0.08, 0.3) + 0.2 * worn + tile.each(tiles, 0, 0.06), body)
    return Surface(height, albedo, roughness, np.zeros_like(height))


def concrete(tile: Tile) -> Surface:
    """Make cast concrete: board or panel joints, air holes, stains, cracks, sometimes a damp, smoother patch."""
    stain, rough, fine = tile.fbm(3, 6, 0.6), tile.fbm(10, 7, 0.55), tile.fbm(96, 4, 0.7)
    panel = tile.bond(tile.pick([1, 2]), [0.0] * tile.pick([2, 2, 4, 6]))
    joint = 1 - smoothstep(0.002, 0.007, panel.edge)
    holes = tile.voronoi(tile.integer(22, 34), jitter=0.9)
    depth = np.clip(1 - np.hypot(holes.x, holes.y) / np.maximum(tile.each(holes, -0.012, 0.008), 1e-4), 0, 1)
    pore = smoothstep(0.0, 0.5, depth)
    crack = tile.cracks(3, 0.004) if tile.chance(0.6) else np.zeros_like(pore)
    height = 0.0025 * rough + 0.0003 * fine + tile.each(panel, 0, 0.004)
    height = height - 0.005 * joint - 0.005 * pore - 0.006 * crack

    base = tile.paint(["a6a39c", "8c8a86", "b9b4a8", "74736f", "9c9486"], 0.12) * tile.each(panel, 0.88, 1.08)
    albedo = base * np.clip(1 + 0.13 * stain + 0.08 * rough + 0.07 * fine, 0.35, 1.6)
    albedo = albedo * (1 - 0.45 * joint) * (1 - 0.5 * pore) * (1 - 0.65 * crack)
    roughness = tile.uniform(0.68, 0.85) + 0.05 * rough + 0.1 * pore
    if tile.chance(0.45):
        damp = smoothstep(0.2, 0.7, tile.fbm(3, 6, 0.5) - 0.15 * rough)
        albedo, roughness = albedo * mix(1, 0.45, damp), mix(roughness, 0.28, damp)
        height = height * mix(1, 0.7, damp)
    return Surface(height, albedo, roughness, np.zeros_like(height))


def marble(tile: Tile) -> Surface:
    """Make polished marble slabs: veins of folded noise, cloudy ground, thin joints."""
    ground, vein, edge = tile.pick(
        [
            ("e9e6e0", "6e6a68", "b8b2aa"),
            ("23211f", "c8bfae", "5a5148"),
            ("2c4a3c", "a8c0ae", "1c3328"),
            ("c9a98c", "7a4634", "e6d2ba"),
            ("d8cdb8", "8a6a44", "efe8da"),
            ("6b2f2a", "d8c4b4", "3e1a18"),
        ]
    )
    side = tile.pick([1, 2, 2, 3])
    slabs = tile.bond(side, [0.0] * side)
    ox, oy = tile.each(slabs, 0, 1), tile.each(slabs, 0, 1)

    def fold(frequency, sharpness):
        field = tile.swirled(tile.fbm(frequency, 6, 0.45), 0.06, 3)
        return np.exp(-sharpness * np.abs(displaced(field, ox, oy)))

    broad, thin, cloud = fold(2, 5), fold(4, 16), displaced(tile.fbm(3, 7, 0.55), ox, oy)
    veins = np.clip(broad * smoothstep(-0.6, 1.0, cloud) + 0.6 * thin, 0, 1)
    joint = 1 - smoothstep(0.0015, 0.004, slabs.edge)
    albedo = mix(colour(ground), colour(edge), smoothstep(-1.2, 1.6, cloud + broad))
    albedo = mix(albedo, colour(vein), 0.85 * veins**1.3) * (1 - 0.7 * joint) * tile.uniform(0.85, 1.05)
    height = tile.tilted(slabs, 0.006) - 0.003 * joint - 0.0006 * thin + 0.0002 * cloud
    roughness = tile.uniform(0.07, 0.22) + 0.12 * veins + 0.03 * cloud + 0.6 * joint
    return Surface(height, albedo, roughness, np.zeros_like(height))


def terrazzo(tile: Tile) -> Surface:
    """Make stone chips of three sizes, ground flat in a tinted binder."""
    binder = tile.paint(["e2ddd2", "3a3a3e", "b7c4bd", "d8b8a6", "8e9aa6", "c9c1b0"])
    chips = [
        tile.pick(["f2efe8", "2b2a2c", "8a5a44", "a8a49c", "5e7a74", "c98f6a", "d9cdb8"]) for _ in range(4)
    ]
    fine = tile.fbm(64, 5, 0.6)
    albedo = binder * np.clip(1 + 0.08 * fine, 0.5, 1.5)
    cover = np.zeros_like(fine)
    for count, share in ((34, 0.5), (18, 0.55), (9, 0.6)):
        cells = tile.voronoi(count, jitter=1.0, at=tile.bent(0.06 / count, 3 * count, 2))
        inset = tile.each(cells, 0.04, 0.22) / count
        chip = smoothstep(0, 0.0025, cells.edge - inset) * (tile.each(cells, 0, 1) < share)
        shade = np.clip(1 + 0.1 * tile.fbm(16, 6, 0.6), 0.5, 1.5)
        albedo = mix(albedo, tile.each_colour(cells, chips, 0.15) * shade, chip)
        cover = np.maximum(cover, chip)
    height = 0.0006 * cover + 0.00012 * fine * (1 - cover) + 0.0006 * tile.fbm(3, 3, 0.4)
    roughness = mix(tile.uniform(0.35, 0.5), tile.uniform(0.12, 0.22), cover) + 0.02 * fine
    return Surface(height, albedo, roughness, np.zeros_like(height))
