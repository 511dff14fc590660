"""Pictures of a material: an endless plane of its repeats, seen by cameras. In plain numpy."""

from __future__ import annotations

import numpy as np

from neuropbr_dist.materials.channels import ALBEDO, linear_to_srgb, quantise, texels
from neuropbr_dist.materials.dirt import random_dirt
from neuropbr_dist.materials.families import random_stream
from neuropbr_dist.materials.noise import Array
from neuropbr_dist.materials.scene import Camera, Lighting, as_column, random_cameras, random_lighting, unit
from neuropbr_dist.materials.shading import PIXELS_AT_ONCE, Visibility, shade

_SUPERSAMPLED_UP_TO = 512  # smaller pictures take 2 x 2 samples a pixel


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
    plane, size = texels(maps), maps.shape[1]
    dirt = random_dirt(random_stream(seed, index, 2)) if dirty else None
    views = np.empty((3, 3, size, size), np.uint8)
    for k, camera in enumerate(cameras):
        picture = render(plane, camera, lighting, size, dirt.shadow if dirt else None)
        if dirt:
            picture = dirt.on_picture(picture, k)
        views[k] = quantise(linear_to_srgb(np.clip(picture, 0, 1)))
    return views


def scene_cameras(seed: int, index: int) -> list[Camera]:
    """Return the three cameras of `render_views`, clean and dirty.

    Raises:
        UserError: if seed or index is negative.
    """
    return random_cameras(_scene_stream(seed, index))


def _scene_stream(seed: int, index: int) -> np.random.Generator:
    return random_stream(seed, index, 1)


def render(
    plane: Array, camera: Camera, lighting: Lighting, size: int, shadow: Visibility | None = None
) -> Array:
    """Linear picture (3, size, size) of an endless plane of repeats, float32, not clipped.

    Args:
        plane: float32 (S, S, 8), the `texels` of the material.
        camera, lighting: the scene.
        size: side of the picture in pixels.
        shadow: share of the key lamp's light, (N,), that reaches points (3, N) of the plane.
    """
    samples = 2 if size <= _SUPERSAMPLED_UP_TO else 1
    fine = size * samples
    centres = (np.arange(fine, dtype=np.float32) + 0.5) / fine
    matrix = lighting.sky.irradiance_matrix()
    ground = plane[..., ALBEDO].mean((0, 1)) * (lighting.sky.irradiance_from_above() / np.pi).astype(
        np.float32
    )
    picture = np.empty((3, fine, fine), np.float32)
    rows = max(1, PIXELS_AT_ONCE // fine)
    for top in range(0, fine, rows):
        row, column = np.meshgrid(centres[top : top + rows], centres, indexing="ij")
        rays = camera.rays(column.ravel(), row.ravel())
        points = as_column(camera.position) - rays * (camera.position[2] / rays[2])
        light = shade(sample(plane, points), points, -unit(rays), lighting, matrix, ground, shadow)
        picture[:, top : top + rows] = light.reshape(3, -1, fine)
    picture *= np.float32(lighting.exposure)
    return picture.reshape(3, size, samples, size, samples).mean((2, 4))


def sample(plane: Array, points: Array) -> Array:
    """The material at points (3, N) of the plane: bilinear, repeating, (8, N)."""
    size = plane.shape[0]
    column, row = (points[0] + 0.5) * size - 0.5, (0.5 - points[1]) * size - 0.5
    left, top = np.floor(column), np.floor(row)
    fx, fy = (column - left)[:, None], (row - top)[:, None]
    left, top = left.astype(np.int64) % size, top.astype(np.int64) % size
    right, below = (left + 1) % size, (top + 1) % size
    flat = plane.reshape(-1, 8)
    upper = flat[top * size + left] * (1 - fx) + flat[top * size + right] * fx
    lower = flat[below * size + left] * (1 - fx) + flat[below * size + right] * fx
    return np.ascontiguousarray((upper * (1 - fy) + lower * fy).T)
