"""Until `materials.render` is in torch: a matt surface under one lamp far away."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.materials.plane import MATRIX, encode
from neuropbr_dist.materials.scene import random_cameras

SCENE = 4


def srgb_to_linear(value: Tensor) -> Tensor:
    return torch.where(value <= 0.04045, value / 12.92, ((value.clamp(min=0.04) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(value: Tensor) -> Tensor:
    return torch.where(value <= 0.0031308, value * 12.92, 1.055 * value.clamp(min=1e-3) ** (1 / 2.4) - 0.055)


def random_scene(
    rng: np.random.Generator, *, dirty: bool, environments: int
) -> tuple[np.ndarray, np.ndarray]:
    cameras = np.stack([encode(camera.on_plane(), True) for camera in random_cameras(rng)])
    light = rng.normal(size=3)
    light[2] = abs(light[2]) + 0.5
    row = np.array([*light / np.linalg.norm(light), 0.5 if dirty else 1.0], np.float32)
    return np.stack([row] * 3), cameras


def render(
    maps: Tensor, scenes: Tensor, cameras: Tensor, keys: Tensor, side: int, environments=None
) -> Tensor:
    count = cameras.shape[1]
    at = (torch.arange(side, device=maps.device, dtype=maps.dtype) + 0.5) / side
    v, u = torch.meshgrid(at, at, indexing="ij")
    seen = torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    a, b, c = cameras[..., MATRIX].unflatten(-1, (3, 3)).unbind(-2)
    cross = torch.linalg.cross
    inverse = torch.stack([cross(b, c), cross(c, a), cross(a, b)], dim=-1)
    x, y, w = (inverse @ seen).unbind(-2)
    x, y = (x / w + 0.5) % 1, (0.5 - y / w) % 1
    size = maps.shape[-1]
    padded = F.pad(maps, (1, 1, 1, 1), mode="circular").repeat_interleave(count, 0)
    grid = torch.stack([x, y], dim=-1).flatten(0, 1).unflatten(1, (side, side))
    found = F.grid_sample(padded, (2 * (grid * size + 1) / (size + 2) - 1), align_corners=False)
    found = found.unflatten(0, (-1, count))
    light, gain = scenes[..., :3, None, None], scenes[..., 3, None, None, None]
    lit = (found[:, :, 5:] * light).sum(2, keepdim=True).clamp(min=0)
    return linear_to_srgb((srgb_to_linear(found[:, :, :3].clamp(0, 1)) * lit * gain).clamp(0, 1))
