"""Metals, bare, worn and corroding. Base colours of bare metals are measured reflectances at normal incidence."""

from __future__ import annotations

import numpy as np

from neuropbr_dist.materials.families.surface import Surface, Tile
from neuropbr_dist.materials.noise import mix, smoothstep

# Linear RGB reflectance at normal incidence.
_BARE = {
    "aluminium": (0.91, 0.92, 0.92),
    "steel": (0.56, 0.57, 0.58),
    "titanium": (0.54, 0.50, 0.45),
    "copper": (0.95, 0.64, 0.54),
    "brass": (0.89, 0.75, 0.42),
    "gold": (1.00, 0.77, 0.34),
    "silver": (0.95, 0.93, 0.88),
    "bronze": (0.71, 0.52, 0.32),
}


def _bare(tile: Tile, names: list[str]) -> np.ndarray:
    return np.array(_BARE[tile.pick(names)], np.float32)[:, None, None] * tile.uniform(0.85, 1.0)


def brushed_metal(tile: Tile) -> Surface:
    """Make sheets of brushed metal with seams and screws; streaks carry both the relief and the roughness."""
    base = _bare(tile, ["aluminium", "aluminium", "steel", "titanium", "brass", "copper"])
    streaks, hairs = tile.fbm((2, 48), 5, 0.75), tile.fbm((6, 160), 4, 0.8)
    cloud, wave = tile.fbm(4, 5, 0.55), tile.fbm(3, 2, 0.4)
    sheets = tile.bond(tile.pick([1, 1, 2]), [0.0] * tile.pick([1, 2, 3]), 0.01)
    seam = 1 - smoothstep(0.003, 0.008, sheets.edge)
    height = 0.00035 * streaks + 0.0001 * hairs + 0.0022 * wave + tile.tilted(sheets, 0.02) - 0.006 * seam
    tone = np.clip(1 + 0.05 * streaks + 0.04 * hairs + 0.04 * cloud, 0.5, 1.3)
    albedo = np.clip(base * tone * tile.each(sheets, 0.9, 1.0) * (1 - 0.7 * seam), 0, 1)
    stained = smoothstep(0.6, 1.8, tile.fbm(5, 6, 0.55))
    roughness = tile.uniform(0.24, 0.42) + 0.045 * streaks + 0.04 * cloud + 0.15 * stained + 0.4 * seam
    metallic = 1 - 0.7 * seam
    surface = Surface(height, albedo, roughness, metallic)
    return surface.transposed() if tile.chance(0.5) else surface


def hammered_metal(tile: Tile) -> Surface:
    """Make hammer blows side by side: bowls with bright rims; tarnish gathers in the hollows of some."""
    base = _bare(tile, ["gold", "copper", "silver", "brass", "bronze"])
    count = tile.integer(6, 12)
    blows = tile.voronoi(count, jitter=0.75, at=tile.bent(0.006, 8))
    blunt = np.exp(-14 * count * blows.edge)  # at the rims
    bowl = (blows.x**2 + blows.y**2) * count - 0.12 / count * blunt
    fine, cloud = tile.fbm(40, 6, 0.8), tile.fbm(4, 7, 0.6)
    height = tile.uniform(0.12, 0.22) * bowl + 0.003 * tile.fbm(3, 3) + 0.00012 * fine
    rim = 1 - smoothstep(0, 0.6, blows.inward())
    tarnish = smoothstep(0.1, 1.1, cloud + 0.2 * fine - 0.6 * rim) * tile.pick([0.0, 0.0, 1.0])
    patina = np.array(tile.pick([(0.10, 0.28, 0.24), (0.06, 0.04, 0.03), (0.16, 0.09, 0.05)]), np.float32)
    albedo = base * np.clip(1 + 0.05 * cloud + 0.03 * fine - 0.1 * (1 - rim), 0.4, 1.1)
    albedo = mix(albedo, patina[:, None, None] * np.clip(1 + 0.3 * fine, 0.3, 2), 0.9 * tarnish)
    roughness = mix(tile.uniform(0.16, 0.34) + 0.03 * cloud - 0.03 * rim, 0.7, tarnish)
    return Surface(height, albedo, roughness, 1 - 0.85 * tarnish)


def tread_plate(tile: Tile) -> Surface:
    """Make steel or aluminium tread plate: raised bars worn bright, dirt on the ground between them."""
    base = _bare(tile, ["steel", "aluminium", "steel", "titanium"])
    count = tile.pick([4, 6, 8])
    cell_x, cell_y = tile.x * count, tile.y * count
    odd = (np.floor(cell_x) + np.floor(cell_y)) % 2
    u, v = cell_x % 1 - 0.5, cell_y % 1 - 0.5
    along = (u + np.where(odd == 0, v, -v)) / np.sqrt(2)
    across = (u - np.where(odd == 0, v, -v)) / np.sqrt(2)
    bar = smoothstep(0.05, -0.035, np.hypot(along / 3.6, across) - 0.085)
    fine, rough, cloud = tile.fbm(64, 5, 0.6), tile.fbm(12, 6, 0.6), tile.fbm(3, 6, 0.55)
    height = 0.11 / count * bar + 0.0006 * rough + 0.0002 * fine + 0.002 * tile.fbm(3, 2)
    hollow = smoothstep(0.2, 0.08, np.hypot(along / 2.5, across))
    dirt = smoothstep(0.3, 1.5, 0.6 * cloud + 0.5 * rough + 0.7 * hollow + tile.uniform(-0.4, 0.5)) * (
        1 - 0.95 * bar
    )
    soil = tile.paint(["3a2f26", "2a2826", "4c3a2a"]) * np.clip(1 + 0.25 * fine, 0.3, 2)
    albedo = mix(base * np.clip(0.88 + 0.08 * bar + 0.05 * rough, 0.4, 1.1), soil, 0.9 * dirt)
    roughness = mix(mix(tile.uniform(0.36, 0.5), tile.uniform(0.18, 0.28), bar) + 0.04 * rough, 0.85, dirt)
    return Surface(height, albedo, roughness, 1 - 0.92 * dirt)


def rust(tile: Tile) -> Surface:
    """Make painted steel that rusts: paint, then a blistered rim, bare steel in scratches, pitted rust."""
    spread, rough, fine = tile.fbm(4, 8, 0.55), tile.fbm(16, 7, 0.6), tile.fbm(72, 5, 0.65)
    drips = tile.fbm((20, 2), 5, 0.55)
    loss = spread + 0.3 * drips + 0.12 * rough
    limit = tile.uniform(-0.2, 0.8)
    corroded = smoothstep(limit, limit + 0.14, loss)
    blister = smoothstep(limit - 0.45, limit, loss) * (1 - corroded)
    scratch = smoothstep(1.9, 2.3, tile.fbm((4, 40), 4, 0.7)) * (1 - corroded)
    columns = tile.pick([1, 2])
    plates = tile.bond(columns, [0.0] * tile.pick([1, 2]), 0.01)
    seam = 1 - smoothstep(0.004, 0.010, plates.edge)
    rivet = np.hypot(np.abs(plates.x) - 0.5 / columns + 0.035, (tile.y * 8) % 1 / 8 - 1 / 16)
    head = np.sqrt(np.clip(1 - (rivet / 0.014) ** 2, 0, 1))

    painted = not tile.chance(0.35)
    coat = tile.paint(["2f5f7a", "8a2f26", "c9a227", "4a6b4a", "d8d4c8", "3d4248", "b8602c"])
    steel = np.array(_BARE["steel"], np.float32)[:, None, None] * tile.uniform(0.8, 1)
    ground = coat * np.clip(1 + 0.04 * spread + 0.03 * fine, 0.5, 1.4) if painted else steel
    dark, bright = tile.paint(["3e1f14", "4a2618"]), tile.paint(["a4552a", "b8662e", "8f4524"])
    crust = mix(dark, bright, smoothstep(-1.4, 1.5, 0.8 * rough + 0.6 * fine + 0.5 * spread))
    stain = 0.6 * blister + 0.35 * smoothstep(0.2, 1.8, drips) * smoothstep(limit - 1.2, limit, loss)
    albedo = mix(ground, bright, np.clip(stain, 0, 0.8))
    albedo = mix(mix(albedo, steel, scratch), crust, corroded) * (1 - 0.5 * seam)
    metallic = mix(mix(0.0 if painted else 1 - 0.7 * stain, 1.0, scratch), 0.03, corroded)
    smooth = tile.uniform(0.22, 0.42)
    roughness = mix(mix(smooth + 0.25 * stain, 0.3, scratch), 0.88 + 0.05 * fine, corroded)
    height = 0.004 * blister + 0.006 * head - 0.006 * seam + 0.001 * tile.fbm(3, 3)
    height = height - corroded * (0.003 - 0.0022 * rough - 0.0008 * fine) - 0.0008 * scratch
    return Surface(height, albedo, roughness, metallic)
