"""A material on a bench: seen from above, lit by one lamp that moves and by a dim grey sky.

Shading and camera are those of the built-in materials. The run page shades the same bench in the
browser; its constants are `bench()`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuropbr_dist.materials.channels import ALBEDO, linear_to_srgb, quantise, texels
from neuropbr_dist.materials.noise import Array
from neuropbr_dist.materials.scene import FIELD_OF_VIEW, Lamp, Lighting, Sky, unit
from neuropbr_dist.materials.shading import PIXELS_AT_ONCE, shade

CAMERA_HEIGHT = float(0.5 / np.tan(FIELD_OF_VIEW / 2))
"""Above the middle of the material: its side, 1, just fills the picture."""
LAMP_HEIGHT = 0.9
LAMP_RADIUS = 0.1
ORBIT = 0.55
"""Distance of the circling lamp from the middle; its highlight runs inside the picture."""
EXPOSURE = 0.55
_GREY = np.ones(3)
SKY = Sky(zenith=0.5 * _GREY, horizon=0.25 * _GREY, lean=0 * _GREY)
# The circling lamp alone gives the middle an irradiance of pi: white paper there reads EXPOSURE.
INTENSITY = float(np.pi * (ORBIT**2 + LAMP_HEIGHT**2) ** 1.5 / LAMP_HEIGHT)


def orbit(turn: float) -> Array:
    """Position (3,) of the lamp after `turn` turns, from the picture's right side over its top."""
    angle = 2 * np.pi * turn
    return np.array([ORBIT * np.cos(angle), ORBIT * np.sin(angle), LAMP_HEIGHT])


def relit(maps: Array, lamp: Array) -> Array:
    """The material as it looks under a lamp, one pixel a texel.

    Args:
        maps: uint8 (8, S, S), albedo in sRGB, normals as (n + 1) / 2.
        lamp: (3,) position; the material lies on [-0.5, 0.5]^2 at height 0, +Y up in the picture.

    Returns:
        uint8 sRGB (S, S, 3).
    """
    size = maps.shape[1]
    plane = texels(maps)
    ground = plane[..., ALBEDO].mean((0, 1)) * (SKY.irradiance_from_above() / np.pi).astype(np.float32)
    lighting, matrix = Lighting((Lamp(lamp, INTENSITY * _GREY, LAMP_RADIUS),), SKY), SKY.irradiance_matrix()
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    picture = np.empty((size, size, 3), np.float32)
    rows = max(1, PIXELS_AT_ONCE // size)
    for top in range(0, size, rows):
        part = slice(top, top + rows)
        x, y = np.meshgrid(centres, -centres[part])
        points = np.stack([x.ravel(), y.ravel(), np.zeros(x.size, np.float32)])
        view = unit(np.array([[0], [0], [CAMERA_HEIGHT]], np.float32) - points)
        material = np.ascontiguousarray(plane[part].reshape(-1, 8).T)
        light = shade(material, points, view, lighting, matrix, ground)
        picture[part] = light.T.reshape(-1, size, 3)
    return quantise(linear_to_srgb(np.clip(picture * EXPOSURE, 0, 1)))


def bench() -> dict[str, Any]:
    """The scene in plain numbers, for a shader elsewhere; all light is grey."""
    return {
        "cameraHeight": CAMERA_HEIGHT,
        "lampHeight": LAMP_HEIGHT,
        "lampRadius": LAMP_RADIUS,
        "intensity": INTENSITY,
        "orbit": ORBIT,
        "exposure": EXPOSURE,
        "zenith": float(SKY.zenith[0]),
        "horizon": float(SKY.horizon[0]),
        "irradiance": SKY.irradiance_matrix()[0].ravel().tolist(),
        "irradianceFromAbove": float(SKY.irradiance_from_above()[0]),
    }
