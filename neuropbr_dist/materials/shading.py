"""The light that a lit surface sends to the viewer: Cook-Torrance with GGX, in plain numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from neuropbr_dist.materials.noise import Array, mix
from neuropbr_dist.materials.scene import Lamp, Lighting, as_column, dot, unit

_DIELECTRIC = np.float32(0.04)
_LEAST_ROUGHNESS = np.float32(0.045)

PIXELS_AT_ONCE = 1 << 15
"""Points to shade in one call: their temporaries stay in the processor's cache."""

Visibility = Callable[[Array, Lamp], Array]
"""Share of a lamp's light, (N,), that reaches points (3, N) of the plane."""


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
        shadow: of the key lamp's light.
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
