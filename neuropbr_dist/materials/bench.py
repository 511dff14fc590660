"""A material on a bench: seen from above, lit by one lamp that moves and by a dim grey sky.

Shading and camera are those of the built-in materials. The run page shades the same bench in the
browser; its constants are `bench()`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuropbr_dist.materials.cameras import FIELD_OF_VIEW, Camera
from neuropbr_dist.materials.channels import linear_to_srgb, quantise
from neuropbr_dist.materials.lights import Lamp, Lighting, Sky
from neuropbr_dist.materials.noise import Array
from neuropbr_dist.materials.views import linear_view

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
    """Return the position (3,) of the lamp after `turn` turns, from the picture's right side over its top."""
    angle = 2 * np.pi * turn
    return np.array([ORBIT * np.cos(angle), ORBIT * np.sin(angle), LAMP_HEIGHT])


def relit(maps: Array, lamp: Array) -> Array:
    """Return the material as it looks under a lamp, one pixel a texel.

    Args:
        maps: uint8 (8, S, S), albedo in sRGB, normals as (n + 1) / 2.
        lamp: (3,) position; the material lies on [-0.5, 0.5]^2 at height 0, +Y up in the picture.

    Returns:
        uint8 sRGB (S, S, 3).
    """
    lighting = Lighting((Lamp(lamp, INTENSITY * _GREY, LAMP_RADIUS),), SKY, EXPOSURE, legacy=True)
    camera = Camera(np.array([0, 0, CAMERA_HEIGHT]), np.zeros(3)).on_plane()
    picture = linear_view(maps, camera, lighting, maps.shape[1], samples=1)
    return quantise(linear_to_srgb(picture.clip(0, 1))).transpose(1, 2, 0)


def irradiance_matrix() -> Array:
    """Return the quadratic form M, (4, 4), of the grey sky: irradiance at unit normal n is (n, 1) M (n, 1)."""
    c0, cx, cy, cz, cxy, cyz, cxz, cxx, czz = SKY.irradiance[0]
    upper = [[cxx, cxy, cxz, cx], [0, -cxx, cyz, cy], [0, 0, 3 * czz, cz], [0, 0, 0, c0 - czz]]
    return (np.array(upper) + np.array(upper).T) / 2


def bench() -> dict[str, Any]:
    """Return the scene in plain numbers, for a shader elsewhere; all light is grey."""
    return {
        "cameraHeight": CAMERA_HEIGHT,
        "lampHeight": LAMP_HEIGHT,
        "lampRadius": LAMP_RADIUS,
        "intensity": INTENSITY,
        "orbit": ORBIT,
        "exposure": EXPOSURE,
        "zenith": float(SKY.zenith[0]),
        "horizon": float(SKY.horizon[0]),
        "irradiance": irradiance_matrix().ravel().tolist(),
        "irradianceFromAbove": float(SKY.irradiance_from_above()[0]),
    }
