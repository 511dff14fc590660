"""The shading model: gradients, energy, reciprocity, against a plain sum over directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from neuropbr_dist.materials.shading import environment_light, lamp_light, reflected, surface
from neuropbr_dist.materials.vectors import unit


def material(albedo=1.0, roughness=0.5, metallic=0.0, normal=(0.0, 0.0, 1.0)) -> torch.Tensor:
    """One point: float64 (8, 1, 1)."""
    return torch.tensor([albedo] * 3 + [roughness, metallic, *normal], dtype=torch.float64)[:, None, None]


def towards(angle: float, azimuth: float = 0.0) -> torch.Tensor:
    """A direction `angle` degrees from +Z: (3, 1, 1)."""
    a, z = math.radians(angle), math.radians(azimuth)
    place = [math.sin(a) * math.cos(z), math.sin(a) * math.sin(z), math.cos(a)]
    return torch.tensor(place, dtype=torch.float64)[:, None, None]


def hemisphere(count: int = 1 << 17) -> torch.Tensor:
    """Directions (3, 1, N) that share the hemisphere equally, by a golden spiral."""
    z = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    turn = torch.arange(count, dtype=torch.float64) * math.pi * (3 - 5**0.5)
    side = (1 - z**2).sqrt()
    return torch.stack([side * turn.cos(), side * turn.sin(), z])[:, None]


def furnace(angle: float, **what: float) -> float:
    """Share of white surroundings that the surface sends to a viewer at this angle."""
    light = hemisphere()
    return float(reflected(material(**what), towards(angle), light)[0].mean() * 2 * math.pi)


def random_points(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Materials (8, 1, N), views and lights (3, 1, N), all above their surface."""
    g = torch.Generator().manual_seed(seed)
    values = torch.rand(5, 1, count, generator=g, dtype=torch.float64) * 0.9 + 0.05
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)[:, None, None]
    normal, view, light = (
        unit(torch.randn(3, 1, count, generator=g, dtype=torch.float64) * spread + up)
        for spread in (0.15, 0.5, 0.5)
    )
    view[2], light[2] = view[2].abs() + 0.4, light[2].abs() + 0.4
    return torch.cat([values, normal]), unit(view), unit(light)


def test_gradients():
    given = [x.requires_grad_() for x in random_points(5, 0)]
    assert torch.autograd.gradcheck(reflected, given)
    lamp = torch.tensor([0.3, 0.2, 1.5, 3.0, 2.0, 1.0, 0.2], dtype=torch.float64, requires_grad=True)
    points = torch.zeros(3, 1, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m, v, p: lamp_light(surface(m, v), points, p), [*given[:2], lamp])

    def sky(m, v):
        seen = surface(m, v)
        return environment_light(seen, seen.roughness + m[:3], seen.normal + 1)

    assert torch.autograd.gradcheck(sky, given[:2])


def test_gradients_are_finite_at_the_corners():
    """Mirrors, mirrored lights, light and view along the surface, below it, and opposite each other."""
    for m in (material(0, 0, 1), material(1, 1, 0, (0, 0, 0))):
        for view in (towards(0), towards(90), towards(120)):
            for light in (towards(0), towards(90), towards(180), -view):
                leaves = [x.clone().requires_grad_() for x in (m, view, light)]
                found = reflected(*leaves)
                found.sum().backward()
                assert all(torch.isfinite(x).all() for x in (found, *(leaf.grad for leaf in leaves)))


def test_dark_where_light_or_view_is_below():
    sloped = material(normal=(0.6, 0.0, 0.8))
    assert reflected(sloped, towards(30), towards(30)).min() > 0
    assert reflected(sloped, towards(30), towards(70, 180)).max() == 0
    assert reflected(sloped, towards(70, 180), towards(30)).max() == 0


def test_light_and_view_can_change_places():
    """Helmholtz: the BRDF, which is `reflected` without its cosine, is symmetric."""
    m, view, light = random_points(4000, 1)
    to_light, to_view = ((m[5:] * x).sum(0) for x in (light, view))
    there, back = reflected(m, view, light) / to_light, reflected(m, light, view) / to_view
    torch.testing.assert_close(there, back, rtol=1e-9, atol=0)


@pytest.mark.parametrize("roughness", [0.1, 0.3, 0.5, 0.8, 1.0])
def test_white_metal_in_a_white_furnace(roughness):
    """Never more than came; a single bounce loses little where smooth and seven tenths where rough."""
    found = [furnace(angle, roughness=roughness, metallic=1.0) for angle in (0, 30, 60, 75, 85)]
    assert max(found) < 1.01  # the sum's error on the narrowest highlights
    assert found[0] == pytest.approx(
        {0.1: 1, 0.3: 0.991, 0.5: 0.916, 0.8: 0.555, 1.0: 0.307}[roughness], abs=2e-3
    )
    assert min(found) > min(0.83, found[0] - 0.01)


@pytest.mark.parametrize("roughness", [0.2, 0.5, 1.0])
def test_white_dielectric_in_a_white_furnace(roughness):
    """Near one in pictures' range. Along the surface this diffuse part (Lambert times 1 - Fresnel of the half vector) is too bright."""
    assert all(0.93 < furnace(angle, roughness=roughness) < 1.03 for angle in (0, 30, 50))
    assert furnace(85, roughness=roughness) < 1.6


@pytest.mark.parametrize("roughness", [0.15, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("metallic", [0.0, 1.0])
def test_split_sum_is_the_sum_over_directions(roughness, metallic):
    """Under white surroundings the approximation of `environment_light` is the model that it approximates, to 0.03."""
    white = torch.ones(3, 1, 1, dtype=torch.float64)
    for angle in (0, 30, 55):
        m = material(0.5, roughness, metallic)
        found = float(environment_light(surface(m, towards(angle)), white, math.pi * white)[0])
        exact = furnace(angle, albedo=0.5, roughness=roughness, metallic=metallic)
        assert found == pytest.approx(exact, abs=0.03)


def test_against_the_formulas_of_the_papers():
    """One point at a time, in plain floats: Walter 2007's distribution and masking tail, Heitz 2014's correlation."""
    m, view, light = random_points(50, 2)
    found = reflected(m, view, light)[:, 0].T.numpy()
    for k in range(50):
        albedo, roughness, metallic, normal = (
            m[part, 0, k].numpy() for part in (slice(3), 3, 4, slice(5, 8))
        )
        v, to = view[:, 0, k].numpy(), light[:, 0, k].numpy()
        h = (v + to) / np.linalg.norm(v + to)
        a2, n_l, n_v, n_h = float(roughness) ** 4, normal @ to, normal @ v, normal @ h
        distribution = a2 / (np.pi * (n_h**2 * (a2 - 1) + 1) ** 2)
        tail_l, tail_v = ((-1 + np.sqrt(1 + a2 * (1 / c**2 - 1))) / 2 for c in (n_l, n_v))
        f0 = 0.04 * (1 - metallic) + albedo * metallic
        fresnel = f0 + (1 - f0) * (1 - v @ h) ** 5
        mirror = distribution * fresnel / (1 + tail_l + tail_v) / (4 * n_l * n_v)
        expected = (mirror + (1 - fresnel) * (1 - metallic) * albedo / np.pi) * n_l
        np.testing.assert_allclose(found[k], expected, rtol=1e-9)


@pytest.mark.parametrize("roughness", [0.25, 0.5])
def test_a_wide_lamp_is_the_mean_of_small_ones_within_reason(roughness):
    """Half of a point's error at most, and the highlight's sum; of which an legacy lamp loses most."""
    x, y = torch.meshgrid(*[torch.linspace(-0.8, 0.8, 61, dtype=torch.float64)] * 2, indexing="xy")
    points = torch.stack([x, y, torch.zeros_like(x)])
    eye = torch.tensor([0.0, 0.0, 1.5], dtype=torch.float64)[:, None, None]
    seen = surface(material(0.6, roughness, 1.0), unit(eye - points))
    rng, radius = np.random.default_rng(0), 0.25
    disc = radius * rng.random(400) ** 0.5 * np.exp(2j * np.pi * rng.random(400))

    def light(x=0.0, y=0.0, radius=0.0, legacy=0.0):
        lamp = torch.tensor([x, y, 1.5, 1, 1, 1, radius], dtype=torch.float64)
        return lamp_light(seen, points, lamp, legacy)[0]

    exact = torch.stack([light(place.real, place.imag) for place in disc]).mean(0)
    wide, dim = light(radius=radius), light(radius=radius, legacy=1.0)
    assert (wide - exact).abs().mean() < 0.6 * (light() - exact).abs().mean()
    assert float(wide.sum() / exact.sum()) == pytest.approx(1, abs=0.02)
    assert float(dim.sum() / exact.sum()) < 0.6
