"""Flat and built-in materials under one light at a time, by this package's renderer and by Mitsuba 3."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch

from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.cameras import FIELD_OF_VIEW, Camera, direction
from neuropbr_dist.materials.channels import MAP_SLICES, linear_to_srgb
from neuropbr_dist.materials.environment import directions
from neuropbr_dist.materials.families import family_name, material_maps
from neuropbr_dist.materials.lights import Lamp, Lighting, Sky, random_sky
from neuropbr_dist.materials.surroundings import sky_radiance
from neuropbr_dist.materials.views import linear_view

DARK = Sky(*np.zeros((3, 3)))
CAMERA = Camera(1.05 * direction(np.radians(30), 0.4), np.zeros(3))
FAMILIES = ("stone", "brushed_metal", "rust", "wood")
_TILES = 9  # repeats of the material, as wide as the camera sees


def lights() -> dict[str, Lighting]:
    """Return each kind of light alone; white paper below reads about 0.8."""
    at = 2.5 * direction(np.radians(35), 3.6)  # opposite the camera: its highlight is in the picture
    power = np.full(3, np.pi * np.linalg.norm(at) ** 3 / at[2])
    sky = random_sky(np.random.default_rng(3))
    return {
        "small lamp": Lighting((Lamp(at, power, 0.02),), DARK, 0.8),
        "wide lamp": Lighting((Lamp(at, power, 0.25),), DARK, 0.8),
        "wide lamp, built-in": Lighting((Lamp(at, power, 0.25),), DARK, 0.8, legacy=True),
        "sky": Lighting((), sky, 0.8),
        "sky, built-in": Lighting((), sky, 0.8, legacy=True),
    }


def materials(size: int) -> dict[str, np.ndarray]:
    """Return uint8 maps (8, size, size), by name."""
    found = {}
    for metallic in (0, 255):
        for roughness in (0.2, 0.4, 0.6, 0.9):
            values = np.array([128] * 3 + [round(roughness * 255), metallic, 128, 128, 255], np.uint8)
            kind = "metal" if metallic else "dielectric"
            found[f"{kind}, roughness {roughness}"] = np.repeat(values, size * size).reshape(8, size, size)
    for family in FAMILIES:
        index = next(i for i in range(15) if family_name(0, i) == family)
        found[family] = material_maps(0, index, size)
    return found


def compare(size: int, samples: int) -> list[dict[str, object]]:
    """Print and return a row a material and light."""
    try:
        mitsuba = import_module("mitsuba")
    except ImportError as error:
        raise UserError(
            "the comparison needs Mitsuba 3: pip install --no-deps --target DIR mitsuba drjit, then PYTHONPATH=DIR"
        ) from error
    mitsuba.set_variant("scalar_rgb")
    rows: list[dict[str, object]] = []
    for name, maps in materials(size).items():
        for kind, light in lights().items():
            ours = linear_view(maps, CAMERA.on_plane(), light, size)
            theirs = _traced(mitsuba, maps, light, size, samples) * light.exposure
            levels = [linear_to_srgb(picture.clip(0, 1)) * 255 for picture in (ours, theirs)]
            difference = np.abs(levels[0] - levels[1])
            row = {
                "material": name,
                "light": kind,
                "ours": round(float(ours.mean()), 4),
                "ratio": round(float(ours.mean() / theirs.mean()), 3),
                "relative": round(float(np.abs(ours - theirs).mean() / theirs.mean()), 3),
                "levels": round(float(difference.mean()), 2),
                "p99": round(float(np.percentile(difference, 99)), 1),
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def _traced(mitsuba: Any, maps: np.ndarray, light: Lighting, size: int, samples: int) -> np.ndarray:
    """Return the linear picture (3, size, size) of a path tracer."""
    transform = mitsuba.ScalarTransform4f
    camera = transform().look_at(
        origin=CAMERA.position.tolist(), target=CAMERA.target.tolist(), up=CAMERA.axes()[1].tolist()
    )
    scene: dict[str, Any] = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": 6},
        "sensor": {
            "type": "perspective",
            "fov": float(np.degrees(FIELD_OF_VIEW)),
            "to_world": camera,
            "sampler": {"type": "independent", "sample_count": samples},
            "film": {"type": "hdrfilm", "width": size, "height": size, "rfilter": {"type": "box"}},
        },
        "plane": {
            "type": "rectangle",
            "to_world": transform().scale(_TILES / 2),
            "material": _material(mitsuba, maps),
        },
    }
    for number, lamp in enumerate(light.lamps):
        scene[f"lamp{number}"] = {
            "type": "sphere",
            "center": lamp.position.tolist(),
            "radius": lamp.radius,
            "emitter": {
                "type": "area",
                "radiance": {"type": "rgb", "value": (lamp.intensity / (np.pi * lamp.radius**2)).tolist()},
            },
        }
    if light.sky.zenith.any():
        scene["sky"] = _sky(mitsuba, light.sky)
    return np.asarray(mitsuba.render(mitsuba.load_dict(scene), seed=1))[..., :3].transpose(2, 0, 1)


def _material(mitsuba: Any, maps: np.ndarray) -> dict[str, Any]:
    """Return the principled BSDF with a normal map."""

    def texture(name: str, raw: bool) -> dict[str, Any]:
        # Its first row is at v = 0, which is at the plane's lower edge.
        pixels = np.ascontiguousarray(maps[MAP_SLICES[name], ::-1].transpose(1, 2, 0))  # type: ignore[index]
        bitmap = mitsuba.Bitmap(pixels)
        if not raw:
            bitmap.set_srgb_gamma(True)
        to_uv = (
            mitsuba.ScalarTransform4f()
            .translate([0.5, 0.5, 0])
            .scale([_TILES, _TILES, 1])
            .translate([-0.5, -0.5, 0])
        )
        return {"type": "bitmap", "bitmap": bitmap, "raw": raw, "to_uv": to_uv, "wrap_mode": "repeat"}

    principled = {
        "type": "principled",
        "base_color": texture("albedo", raw=False),
        "roughness": texture("roughness", raw=True),
        "metallic": texture("metallic", raw=True),
        "eta": 1.5,
    }
    return {"type": "normalmap", "normalmap": texture("normal", raw=True), "bsdf": principled}


def _sky(mitsuba: Any, sky: Sky) -> dict[str, Any]:
    """Return the sky as a picture of surroundings, dark below the horizon."""
    towards, _ = directions(256)
    # Mitsuba's pictures have y up and begin at -z, going to +x.
    up, azimuth = towards[2], torch.atan2(towards[1], towards[0])
    side = (1 - up**2).clamp_min(0).sqrt()
    x, y = side * torch.sin(azimuth + np.pi), side * torch.cos(azimuth + np.pi)
    there = torch.stack([x, y, up]).double()
    gradient, windows = map(torch.from_numpy, sky.numbers())
    light = sky_radiance(gradient, windows, there, 0.02) * (up > 0)
    bitmap = mitsuba.Bitmap(np.ascontiguousarray(light.permute(1, 2, 0).float().numpy()))
    return {"type": "envmap", "bitmap": bitmap, "to_world": _turn(mitsuba)}


def _turn(mitsuba: Any) -> Any:
    """Return the turn from Mitsuba's frame (y up) to the plane's (z up)."""
    return mitsuba.ScalarTransform4f().rotate([1, 0, 0], 90)
