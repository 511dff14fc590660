"""The light that a lit surface sends to the viewer: Cook-Torrance with GGX, in torch.

GGX distribution (Walter et al. 2007), height-correlated Smith masking (Heitz 2014), Schlick's Fresnel; Lambert below,
lit by what Fresnel lets through. A single bounce: of what white metal would reflect after several, 9 % are lost at
roughness 0.5 and 69 % at 1. Along the surface a white dielectric is too bright (half as much again at 85 degrees).

Vectors are unit, (..., 3, H, W). Everything is differentiable, element by element, and without a wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neuropbr_dist.materials.channels import ALBEDO, METALLIC, NORMAL, ROUGHNESS
from neuropbr_dist.materials.vectors import column, dot, unit

DIELECTRIC = 0.04
"""Reflectance at right angles of what is no metal."""
LEAST_ROUGHNESS = 0.045
"""Smoother surfaces are shaded as this one: their highlights would fall between pixels."""
_LEAST_COSINE = 1e-3  # to the viewer: a normal map can turn a surface away from a camera that sees it

# Least squares over roughness 0.045 to 1 and cosine 0.05 to 1; a row a power of roughness, a column one of the cosine.
_RESPONSE_SCALE = (
    (0.025, 4.296, -6.292, 2.941),
    (0.944, -7.209, 16.101, -9.285),
    (1.631, -4.509, -5.605, 6.908),
    (-1.803, 6.393, -3.395, -0.864),
)
_RESPONSE_OFFSET = (
    (1.042, -4.429, 6.146, -2.776),
    (-2.247, 12.135, -19.597, 9.807),
    (1.159, -10.669, 21.102, -11.755),
    (0.108, 2.756, -7.42, 4.64),
)


class Surface(NamedTuple):
    """Facts of the material's points that shading asks for, as seen from one side; each is (..., C, H, W)."""

    normal: Tensor
    """C = 3, unit."""
    view: Tensor
    """C = 3, unit, to the viewer."""
    n_v: Tensor
    """C = 1, cosine between the two, at least 0.001."""
    roughness: Tensor
    """C = 1, at least `LEAST_ROUGHNESS`."""
    specular: Tensor
    """C = 3, reflectance at right angles."""
    diffuse: Tensor
    """C = 3, Lambert's BRDF of the part below."""


def surface(material: Tensor, view: Tensor) -> Surface:
    """Return the shading parameters of a material.

    Args:
        material: (..., 8, H, W) linear albedo, roughness, metallic, normal (made unit here).
        view: (..., 3, H, W) unit vectors to the viewer.
    """
    albedo, roughness, metallic, normal = (
        material[..., k, :, :] for k in (ALBEDO, ROUGHNESS, METALLIC, NORMAL)
    )
    normal = unit(normal)
    return Surface(
        normal=normal,
        view=view,
        n_v=dot(normal, view).clamp_min(_LEAST_COSINE),
        roughness=roughness.clamp_min(LEAST_ROUGHNESS),
        specular=DIELECTRIC + (albedo - DIELECTRIC) * metallic,
        diffuse=albedo * ((1 - metallic) / math.pi),
    )


def reflected(material: Tensor, view: Tensor, light: Tensor) -> Tensor:
    """Return BRDF times the cosine to the light: radiance per irradiance that a surface square to the light has.

    Args:
        material: (..., 8, H, W) linear albedo, roughness, metallic, unit normal.
        view, light: (..., 3, H, W) unit vectors to the viewer and to the light; all three broadcast.

    Returns:
        (..., 3, H, W); 0 where light or view is below the surface.
    """
    seen = surface(material, view)
    front = dot(seen.normal, view) > 0
    return torch.where(front, lit(seen, light), 0)


def lit(seen: Surface, light: Tensor, lobe: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Return BRDF times cosine of a surface, (..., 3, H, W); 0 where the light is below it.

    Args:
        light: (..., 3, H, W) unit vectors to the light's middle.
        lobe: another distribution's height and squared width, (..., 1, H, W) each, see `_spread`; None: a point's.
    """
    n_l = dot(seen.normal, light).clamp_min(0)
    half = unit(light + seen.view)
    n_h, v_h = dot(seen.normal, half).clamp_min(0), dot(seen.view, half).clamp_min(0)
    a2 = seen.roughness**4
    height, width = lobe or (a2, a2)
    distribution = height / (math.pi * (n_h**2 * (width - 1) + 1) ** 2)
    masked_l, masked_v = ((n**2 * (1 - a2) + a2).sqrt() for n in (n_l, seen.n_v))
    smith = n_l * masked_v + seen.n_v * masked_l
    mirror = distribution * 0.5 / smith.clamp_min(1e-6)
    fresnel = seen.specular + (1 - seen.specular) * (1 - v_h) ** 5
    return (fresnel * (mirror - seen.diffuse) + seen.diffuse) * n_l


def _spread(roughness: Tensor, angle: Tensor, legacy: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return height and squared width of the GGX distribution as a round light of this size spreads it.

    Half vectors to a disc are off by up to half its angle, by half of that squared on average: variances add, and the
    light in the highlight stays. Legacy ones: alpha grows by the angle's half instead (Karis 2013, "Real Shading in
    Unreal Engine 4") and the height, which would have to follow, stays.

    Args:
        roughness: (..., 1, H, W).
        angle: (..., 1, H, W) radius of the light over its distance.
        legacy: (..., 1, 1, 1) 0 or 1.
    """
    alpha, offset = roughness**2, angle / 2
    wide = (alpha**2 + offset**2 / 2).clamp_max(1)
    karis = (alpha + offset).clamp_max(1) ** 2
    return wide + legacy * (alpha**2 - wide), wide + legacy * (karis - wide)


def lamp_light(seen: Surface, points: Tensor, lamp: Tensor, legacy: Tensor | float = 0.0) -> Tensor:
    """Return the light (..., 3, H, W) of a small round lamp that the surface sends to the viewer.

    Args:
        points: (..., 3, H, W) of the plane.
        lamp: (..., 7) position, radiant intensity RGB (irradiance is intensity * cos / distance^2), radius.
        legacy: (..., 1, 1, 1) 0 or 1, see `lights.Lighting`.
    """
    to_lamp = column(lamp[..., 0:3]) - points
    near = dot(to_lamp, to_lamp).clamp_min(1e-12).rsqrt()
    lobe = _spread(seen.roughness, column(lamp[..., 6:7]) * near, legacy)
    return lit(seen, to_lamp * near, lobe) * (column(lamp[..., 3:6]) * near**2)


def environment_light(
    seen: Surface, radiance: Tensor, irradiance: Tensor, legacy: Tensor | float = 0.0
) -> Tensor:
    """Return the light of surroundings by the split-sum approximation: blurred reflection times the BRDF's response.

    Args:
        radiance: (..., 3, H, W) of the surroundings around the mirrored view, blurred by roughness, see `sky_blur`.
        irradiance: (..., 3, H, W) of the surroundings at the normal.
        legacy: (..., 1, 1, 1) 0 or 1, see `lights.Lighting`.
    """
    response = (
        _response(seen)
        if isinstance(legacy, float)
        else torch.lerp(_response(seen), _karis_response(seen), legacy)
    )
    return radiance * response + irradiance * seen.diffuse * (1 - response)


def sky_blur(roughness: Tensor, legacy: Tensor | float = 0.0) -> Tensor:
    """Return how wide a sky is to be averaged for `environment_light`, (..., 1, H, W); see `sky_radiance`.

    Fitted to skies averaged by the GGX lobe: 5 to 11 % off on average, the legacy fit 7 to 22 %.
    """
    alpha = roughness**2
    blur = 0.02 + 1.45 * (1 - torch.exp(-3.4 * alpha))
    return blur + legacy * (0.03 + 1.4 * alpha - blur)


def _response(seen: Surface) -> Tensor:
    """Return what the BRDF's mirror part sends back of white surroundings: a fit to its integral, 0.03 off at most within 75 degrees.

    It is specular * a + b; both are polynomials of roughness and of the cosine to the viewer.
    """
    r, c = seen.roughness, seen.n_v
    a, b = (_horner([_horner(row, c) for row in table], r) for table in (_RESPONSE_SCALE, _RESPONSE_OFFSET))
    return (seen.specular * a + b).clamp(0, 1)


def _horner(coefficients: Sequence[Tensor | float], x: Tensor) -> Tensor:
    total = x.new_zeros(())
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total


def _karis_response(seen: Surface) -> Tensor:
    """Return Karis' fit to another masking term (2014, "Physically Based Shading on Mobile"), up to 0.1 off."""
    r = seen.roughness
    grazing = torch.minimum((1 - r) ** 2, torch.exp2(-9.28 * seen.n_v)) * (1 - r) + 0.0425 - 0.0275 * r
    scale, offset = -1.04 * grazing + 1.04 - 0.572 * r, 1.04 * grazing - 0.04 + 0.022 * r
    return seen.specular * scale + offset
