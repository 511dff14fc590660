"""Pictures as upstream NeuroPBR's CUDA renderer makes them, written anew after what its code does.

The facts (its `renderer.cpp`, `shading.cu` and `io.cpp`, read in December 2025):

- The material lies on y = 0, half a unit a repeat, the middle of a repeat under the camera's target. The camera stands
  0.6 units away, tilted by up to 40 degrees towards any azimuth, and looks at the origin; the field of view is 55 degrees.
- Its up is the surface's normal, or, where the view is nearly along it (|cosine| > 0.99: tilts below 8.1 degrees), +z.
- Maps are read and pictures are written upside down, so that in a picture's frame "up" is towards the camera.
- One sample a pixel, bilinear, of texels at u (W - 1): aliased, and half a texel off at the tile's edges.
- Normals' green is taken as pointing down. Albedo bytes are taken as linear, and radiance is written as bytes, clipped,
  without exposure or sRGB curve. An environment is the only light.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from neuropbr_dist.data.cameras import CAMERAS_FILE, SampleCameras, write_cameras
from neuropbr_dist.materials.cameras import unit
from neuropbr_dist.materials.channels import MAP_SLICES
from neuropbr_dist.materials.families.registry import family_name, material_maps
from neuropbr_dist.materials.lights import Lighting, random_lighting
from neuropbr_dist.materials.noise import Array
from neuropbr_dist.materials.plane import PlaneCamera, encode
from neuropbr_dist.materials.render import Plane, shaded
from neuropbr_dist.materials.render import View as PlaneView
from neuropbr_dist.materials.scene import Scene, decode_scene, encode_scene

DISTANCE, HALF_FIELD, MOST_TILT, STEEP = 0.6, np.tan(np.radians(27.5)), 40.0, 0.99


@dataclass(frozen=True)
class View:
    """A camera in the renderer's world: y is up, the material lies on y = 0."""

    position: Array
    """(3,)."""
    right: Array
    up: Array
    forward: Array

    def rays(self, size: int) -> Array:
        """Return ray directions (3, size, size); row 0 is that of the file, which is written upside down."""
        at = (np.arange(size) + 0.5) / size * 2 - 1
        across, above = np.meshgrid(at * HALF_FIELD, at * HALF_FIELD)
        axes = self.forward[:, None, None], self.right[:, None, None], self.up[:, None, None]
        return axes[0] + across * axes[1] + above * axes[2]

    def on_plane(self) -> PlaneCamera:
        """Return the camera in map coordinates: (x, y, z) there are (2 x, -2 z, 2 y) here."""

        def turned(vector: Array) -> Array:
            return np.array([vector[0], -vector[2], vector[1]])

        eye = 2 * turned(self.position)
        right, down, forward = turned(self.right), turned(self.up), turned(self.forward)
        rows = [np.array([*axis[:2], -axis @ eye]) for axis in (right, down, forward)]
        u, v = (0.5 * rows[2] + row / (2 * HALF_FIELD) for row in rows[:2])
        return PlaneCamera(np.stack([u, v, rows[2]]), eye)


def random_view(rng: np.random.Generator) -> View:
    """Return a camera at a random azimuth, tilted by a random angle."""
    return view_at(np.radians(rng.uniform(0, MOST_TILT)), np.radians(rng.uniform(0, 360)))


def view_at(tilt: float, azimuth: float) -> View:
    """Return the camera at these angles, in radians."""
    towards = np.array([np.sin(tilt) * np.cos(azimuth), np.cos(tilt), np.sin(tilt) * np.sin(azimuth)])
    forward = -towards
    world_up = np.array([0.0, 0.0, 1.0] if abs(forward[1]) > STEEP else [0.0, 1.0, 0.0])
    right = unit(np.cross(world_up, forward))
    return View(DISTANCE * towards, right, np.cross(forward, right), forward)


def random_environment(rng: np.random.Generator) -> Lighting:
    """Return an unexposed sky without lamps: a matt white plane reads 0.25 to 1.5 of full scale."""
    light = random_lighting(rng)
    return replace(light, lamps=(), exposure=float(np.exp(rng.uniform(np.log(0.25), np.log(1.5)))))


def picture(maps: Array, view: View, light: Lighting, size: int | None = None) -> Array:
    """Return the picture's bytes, uint8 (3, size, size).

    Args:
        maps: uint8 (8, S, S).
        size: side of the picture; None: the maps'.
    """
    size = size or maps.shape[1]
    rays = view.rays(size).reshape(3, -1)
    texels = np.ascontiguousarray(maps[:, ::-1].transpose(1, 2, 0), np.float32) / 255  # read upside down
    texels[..., 5:] = texels[..., 5:] * 2 - 1
    hit = view.position[:, None] - rays * (view.position[1] / rays[1])
    material = _sampled(texels, hit)
    # The shader's frame has the normal along z: (x, z, y) of the world, mirrored, so that it is right-handed.
    material[6] *= -1  # green points to +z of the world, which is -y of the map
    points = np.stack([2 * hit[0], -2 * hit[2], np.zeros_like(hit[0])])
    found = _shaded(material, points, view.on_plane(), light)
    found[:, (np.abs(hit[[0, 2]]) > 1.5).any(0)] = 0
    return np.rint(np.clip(found * light.exposure, 0, 1) * 255).astype(np.uint8).reshape(3, size, size)


def _shaded(material: Array, points: Array, camera: PlaneCamera, light: Lighting) -> Array:
    """Light (3, N) that points of a material send to a camera."""
    texels, at = (torch.from_numpy(a).float()[None, None, :, None] for a in (material, points))
    plane = Plane(texels[0], texels[0, :, :3].mean((2, 3), keepdim=True))
    scene = decode_scene(torch.from_numpy(encode_scene(Scene((), (light,))))[None])
    seen = PlaneView(plane, torch.from_numpy(encode(camera, True))[None, None], scene, None)
    return shaded(seen, texels, at, shadow=False)[0, 0, :, 0].numpy()


def write_upstream_set(root: Path, count: int, size: int, seed: int) -> None:
    """Write built-in materials with three pictures each, clean only, and the true cameras beside them."""
    metadata, cameras = {}, {}
    for index in range(count):
        name, material = f"sample_{index:04d}", f"{family_name(seed, index)}_{index:04d}"
        rng = np.random.default_rng([seed, index])
        maps, light = material_maps(seed, index, size), random_environment(rng)
        views = [random_view(rng) for _ in range(3)]
        for number, view in enumerate(views):
            _save(picture(maps, view, light), root / "input" / "clean" / name / f"{number}.png")
        for what, planes in MAP_SLICES.items():
            _save(maps[planes], root / "output" / material / f"{what}.png")
        metadata[name] = material
        cameras[name] = SampleCameras({"clean": tuple(view.on_plane() for view in views)}, wrap=True)
    write_cameras(root / "input" / CAMERAS_FILE, cameras)
    (root / "input" / "render_metadata.json").write_text(json.dumps(metadata))


def _save(planes: Array, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def _sampled(texels: Array, hit: Array) -> Array:
    """Texels (S, S, 8) at points (3, N) of the world: (8, N)."""
    size = texels.shape[0]
    column, row = (np.mod(np.stack([2 * hit[0], -2 * hit[2]]) + 0.5, 1.0)) * (size - 1)
    left, top = np.floor(column).astype(np.int64), np.floor(row).astype(np.int64)
    fx, fy = (column - left)[:, None], (row - top)[:, None]
    right, below = np.minimum(left + 1, size - 1), np.minimum(top + 1, size - 1)
    upper = texels[top, left] * (1 - fx) + texels[top, right] * fx
    lower = texels[below, left] * (1 - fx) + texels[below, right] * fx
    return np.ascontiguousarray((upper * (1 - fy) + lower * fy).T)
