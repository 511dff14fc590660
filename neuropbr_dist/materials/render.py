"""A plane of material, seen by a camera: Cook-Torrance shading with GGX, in plain numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from neuropbr_dist.materials.dirt import random_dirt
from neuropbr_dist.materials.families import random_stream
from neuropbr_dist.materials.noise import Array, mix
from neuropbr_dist.materials.scene import (
    Camera,
    Lamp,
    Lighting,
    as_column,
    dot,
    random_cameras,
    random_lighting,
    unit,
)
from neuropbr_dist.materials.surface import linear_to_srgb, srgb_to_linear

_DIELECTRIC = np.float32(0.04)
_LEAST_ROUGHNESS = np.float32(0.045)
_PIXELS_AT_ONCE = 1 << 15  # keeps the temporaries in the processor's cache
_SUPERSAMPLED_UP_TO = 512  # smaller pictures take 2 x 2 samples a pixel

Visibility = Callable[[Array, Lamp], Array]


def render_views(maps: Array, seed: int, index: int, *, dirty: bool) -> Array:
    """Three pictures of a material.

    Args:
        maps: uint8 (8, S, S), as `material_maps` gives them.
        seed, index: key of cameras, light and dirt. Clean and dirty views share cameras and light.
        dirty: add a lamp shadow, lens smudges and scratches, noise, exposure and white-balance shifts.

    Returns:
        uint8 sRGB (3, 3, S, S): view, channel, row, column.

    Raises:
        UserError: if seed or index is negative.
    """
    rng = _scene_stream(seed, index)
    cameras, lighting = random_cameras(rng), random_lighting(rng)
    texels, size = texels_from_maps(maps), maps.shape[1]
    dirt = random_dirt(random_stream(seed, index, 2)) if dirty else None
    views = np.empty((3, 3, size, size), np.uint8)
    for k, camera in enumerate(cameras):
        picture = render(texels, camera, lighting, size, dirt.shadow if dirt else None)
        if dirt:
            picture = dirt.on_picture(picture, k)
        views[k] = linear_to_srgb(np.clip(picture, 0, 1)) * 255 + 0.5
    return views


def scene_cameras(seed: int, index: int) -> list[Camera]:
    """Return the three cameras of `render_views`, clean and dirty.

    Raises:
        UserError: if seed or index is negative.
    """
    return random_cameras(_scene_stream(seed, index))


def _scene_stream(seed: int, index: int) -> np.random.Generator:
    return random_stream(seed, index, 1)


def texels_from_maps(maps: Array) -> Array:
    """uint8 maps (8, S, S) -> float32 (S, S, 8): linear albedo, roughness, metallic, normal (not unit)."""
    texels = np.ascontiguousarray(maps.transpose(1, 2, 0), np.float32) / 255
    texels[..., :3] = srgb_to_linear(texels[..., :3])
    texels[..., 5:] = texels[..., 5:] * 2 - 1
    return texels


def render(
    texels: Array, camera: Camera, lighting: Lighting, size: int, shadow: Visibility | None = None
) -> Array:
    """Linear picture (3, size, size) of an endless plane of repeats, float32, not clipped.

    Args:
        texels: float32 (S, S, 8) from `texels_from_maps`.
        camera, lighting: the scene.
        size: side of the picture in pixels.
        shadow: share of the key lamp's light, (N,), that reaches points (3, N) of the plane.
    """
    samples = 2 if size <= _SUPERSAMPLED_UP_TO else 1
    fine = size * samples
    centres = (np.arange(fine, dtype=np.float32) + 0.5) / fine
    matrix = lighting.sky.irradiance_matrix()
    ground = texels[..., :3].mean((0, 1)) * (lighting.sky.irradiance_from_above() / np.pi).astype(np.float32)
    picture = np.empty((3, fine, fine), np.float32)
    rows = max(1, _PIXELS_AT_ONCE // fine)
    for top in range(0, fine, rows):
        row, column = np.meshgrid(centres[top : top + rows], centres, indexing="ij")
        rays = camera.rays(column.ravel(), row.ravel())
        points = as_column(camera.position) - rays * (camera.position[2] / rays[2])
        light = shade(sample(texels, points), points, -unit(rays), lighting, matrix, ground, shadow)
        picture[:, top : top + rows] = light.reshape(3, -1, fine)
    picture *= np.float32(lighting.exposure)
    return picture.reshape(3, size, samples, size, samples).mean((2, 4))


def sample(texels: Array, points: Array) -> Array:
    """The material at points (3, N) of the plane: bilinear, repeating, (8, N)."""
    size = texels.shape[0]
    column, row = (points[0] + 0.5) * size - 0.5, (0.5 - points[1]) * size - 0.5
    left, top = np.floor(column), np.floor(row)
    fx, fy = (column - left)[:, None], (row - top)[:, None]
    left, top = left.astype(np.int64) % size, top.astype(np.int64) % size
    right, below = (left + 1) % size, (top + 1) % size
    flat = texels.reshape(-1, 8)
    upper = flat[top * size + left] * (1 - fx) + flat[top * size + right] * fx
    lower = flat[below * size + left] * (1 - fx) + flat[below * size + right] * fx
    return np.ascontiguousarray((upper * (1 - fy) + lower * fy).T)


def shade(
    material: Array,
    points: Array,
    view: Array,
    lighting: Lighting,
    irradiance: Array,
    ground: Array,
    shadow: Visibility | None = None,
) -> Array:
    """Radiance (3, N) towards the viewer.

    Args:
        material: (8, N) linear albedo, roughness, metallic, normal.
        points: (3, N) on the plane.
        view: (3, N) unit vectors to the camera.
        lighting: lamps and sky.
        irradiance: the sky's `irradiance_matrix`.
        ground: (3,) radiance of the plane itself, seen by reflections that point below it.
        shadow: see `render`.
    """
    albedo, metallic = material[:3], material[4]
    roughness, normal = np.maximum(material[3], _LEAST_ROUGHNESS), unit(material[5:])
    alpha = roughness**2
    specular = _DIELECTRIC + (albedo - _DIELECTRIC) * metallic
    diffuse = albedo * ((1 - metallic) / np.float32(np.pi))
    n_v = np.maximum(dot(normal, view), 1e-3)
    light = _sky_light(lighting, irradiance, ground, normal, view, n_v, roughness, specular, diffuse)
    for k, lamp in enumerate(lighting.lamps):
        lit = _lamp_light(lamp, points, normal, view, n_v, alpha, specular, diffuse)
        light += lit * shadow(points, lamp) if shadow and k == 0 else lit
    return light


def _lamp_light(lamp: Lamp, points, normal, view, n_v, alpha, specular, diffuse) -> Array:
    """GGX distribution, height-correlated Smith, Schlick's Fresnel; Lambert below.

    A round lamp widens alpha (Karis 2013, "Real Shading in Unreal Engine 4").
    """
    to_lamp = as_column(lamp.position) - points
    squared = dot(to_lamp, to_lamp)
    distance = np.sqrt(squared)
    to_lamp /= distance
    n_l = np.maximum(dot(normal, to_lamp), 0)
    half = unit(to_lamp + view)
    n_h, v_h = np.maximum(dot(normal, half), 0), np.maximum(dot(view, half), 0)
    widened = np.minimum(alpha + np.float32(lamp.radius / 2) / distance, 1)
    a2, wide2 = alpha**2, widened**2
    distribution = a2 / (np.float32(np.pi) * (n_h * n_h * (wide2 - 1) + 1) ** 2)
    smith = n_l * np.sqrt(n_v * n_v * (1 - a2) + a2) + n_v * np.sqrt(n_l * n_l * (1 - a2) + a2)
    fresnel = specular + (1 - specular) * (1 - v_h) ** 5
    reflected = fresnel * (distribution * 0.5 / np.maximum(smith, 1e-6)) + (1 - fresnel) * diffuse
    return reflected * (as_column(lamp.intensity) * (n_l / squared))


def _sky_light(lighting, irradiance, ground, normal, view, n_v, roughness, specular, diffuse) -> Array:
    """The sky by the split-sum approximation: blurred reflection times the BRDF's response.

    The response is Karis' fit (2014, "Physically Based Shading on Mobile").
    """
    mirrored = 2 * dot(normal, view) * normal - view
    blur = 0.03 + 1.4 * roughness**2
    above = np.clip(0.5 + mirrored[2] / (0.15 + blur), 0, 1)
    seen = mix(as_column(ground), lighting.sky.radiance(mirrored, blur), above)
    grazing = (
        np.minimum((1 - roughness) ** 2, np.exp2(-9.28 * n_v)) * (1 - roughness) + 0.0425 - 0.0275 * roughness
    )
    scale = -1.04 * grazing + 1.04 - 0.572 * roughness
    offset = 1.04 * grazing - 0.04 + 0.022 * roughness
    response = specular * scale + offset
    x, y, z = normal
    m = irradiance[:, :, :, None]
    received = (
        m[:, 0, 0] * x * x
        + m[:, 1, 1] * y * y
        + m[:, 2, 2] * z * z
        + 2 * (m[:, 0, 1] * x * y + m[:, 0, 2] * x * z + m[:, 1, 2] * y * z)
        + 2 * (m[:, 0, 3] * x + m[:, 1, 3] * y + m[:, 2, 3] * z)
        + m[:, 3, 3]
    )
    return seen * response + np.maximum(received, 0) * diffuse * (1 - response)
