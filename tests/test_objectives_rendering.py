"""The rendering loss: what it sees, its gradients, and where lamps and eyes are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from neuropbr_dist.data.keyed import uniforms
from neuropbr_dist.materials.relighting import INDEPENDENT, RENDERS, from_above, relighting
from neuropbr_dist.objectives.rendering import LARGEST_SQUARE, relit, rendering_loss, square_of

SIDE = 8


def maps(count: int = 2, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    """Float64 maps whose normals lean by up to 30 degrees."""
    random = torch.Generator().manual_seed(seed)
    found = torch.rand(count, 8, side, side, generator=random, dtype=torch.float64) * 0.8 + 0.1
    normal = torch.cat([found[:, 5:7] - 0.5, torch.ones_like(found[:, 7:])], dim=1)
    return torch.cat([found[:, :5], normal / normal.norm(dim=1, keepdim=True)], dim=1)


def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    lamps, eyes, _ = relighting([uniforms(str(k)) for k in range(count)])
    return lamps.double(), eyes.double()


def plain(maps: np.ndarray, lamp: np.ndarray, eye: np.ndarray, row: int, column: int) -> np.ndarray:
    """Log of one pixel's radiance, straight from the formulas: GGX, height-correlated Smith, Schlick, Lambert."""
    height, width = maps.shape[1:]
    point = np.array([(column + 0.5) / width * 2 - 1, 1 - (row + 0.5) / height * 2, 0.0])
    stored, (roughness, metallic), n = maps[:3, row, column], maps[3:5, row, column], maps[5:, row, column]
    albedo = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    light, view = (lamp - point) / np.linalg.norm(lamp - point), (eye - point) / np.linalg.norm(eye - point)
    half = (light + view) / np.linalg.norm(light + view)
    n_l, n_v, n_h, v_h = max(n @ light, 0), n @ view, n @ half, view @ half
    a2 = max(roughness, 0.045) ** 4
    ggx = a2 / (math.pi * (n_h**2 * (a2 - 1) + 1) ** 2)
    smith = n_l * math.sqrt(n_v**2 * (1 - a2) + a2) + n_v * math.sqrt(n_l**2 * (1 - a2) + a2)
    f0 = 0.04 + (albedo - 0.04) * metallic
    fresnel = f0 + (1 - f0) * (1 - v_h) ** 5
    brdf = fresnel * ggx / (2 * smith) + (1 - fresnel) * albedo * (1 - metallic) / math.pi
    falloff = (lamp @ lamp) / ((lamp - point) @ (lamp - point))
    return np.log(math.pi * brdf * n_l * falloff + 0.1) if n_v > 0 else np.full(3, math.log(0.1))


def test_pictures_are_those_of_the_formulas():
    lamps, eyes = drawn(2)
    found = relit(maps(), lamps, eyes).numpy()
    for sample, k, row, column in [(0, 0, 0, 0), (0, 4, 3, 5), (1, 8, 7, 2), (1, 2, 4, 4)]:
        wanted = plain(maps()[sample].numpy(), lamps[sample, k].numpy(), eyes[sample, k].numpy(), row, column)
        np.testing.assert_allclose(
            found[sample, k, :, row, column], wanted, atol=2e-3
        )  # n_v is 0.001 or more


def test_the_same_maps_cost_nothing_and_each_map_counts():
    lamps, eyes = drawn(2)
    assert rendering_loss(maps(), maps(), lamps, eyes).eq(0).all()
    for channel in range(8):
        changed = maps()
        changed[0, channel] += 0.05
        loss = rendering_loss(changed, maps(), lamps, eyes)
        assert loss[0] > 1e-3 and loss[1] == 0


def test_gradients_are_the_slopes():
    lamps, eyes = drawn(1)
    pred = maps(1, side=3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rendering_loss(x, maps(1, side=3), lamps, eyes), pred)


def test_highlights_lie_inside_the_square():
    """Where the mirror is, the half vector is the plane's normal: a glossy plane's brightest place, often."""
    lamps, eyes = drawn(200)
    mirrored, free = slice(INDEPENDENT, None), slice(None, INDEPENDENT)

    def shares(which: slice) -> float:
        lamp, eye = lamps[:, which], eyes[:, which]
        at = (lamp * eye[..., 2:] + eye * lamp[..., 2:]) / (lamp[..., 2:] + eye[..., 2:])
        return (at[..., :2].abs() <= 1).all(-1).double().mean().item()

    assert shares(mirrored) == 1
    assert shares(free) < 0.8
    assert (lamps[..., 2] > 0).all() and (eyes[..., 2] > 0).all()
    assert lamps.shape == (200, RENDERS, 3)


def test_a_square_of_large_maps_is_looked_at_by_its_corner():
    large = torch.arange(2 * 8 * 300 * 280, dtype=torch.float32).view(2, 8, 300, 280)
    found = square_of(large, torch.tensor([(0.0, 0.0), (0.999, 0.5)]))
    assert found.shape == (2, 8, LARGEST_SQUARE, LARGEST_SQUARE)
    assert torch.equal(found[0], large[0, :, :256, :256])
    assert torch.equal(found[1], large[1, :, 44:, 12:268])
    small = maps()
    assert square_of(small, torch.full((2, 2), 0.5)) is small


def test_draws_depend_on_the_key_alone():
    one, two = relighting([uniforms("a"), uniforms("b")]), relighting([uniforms("b")])
    assert torch.equal(one.lamps[1], two.lamps[0]) and torch.equal(one.eyes[1], two.eyes[0])
    assert torch.equal(one.corners[1], two.corners[0]) and not torch.equal(one.corners[0], one.corners[1])


@pytest.mark.parametrize("roughness", [0.0, 1.0])
def test_filler_and_extremes_make_no_nan(roughness):
    pred = maps(1).requires_grad_()
    with torch.no_grad():
        pred[:, 3] = roughness
        pred[:, 5:] = torch.tensor([0.0, 0.0, -1.0])[:, None, None]
    lamps, eyes, _ = from_above(1)
    rendering_loss(pred, maps(1, seed=1), lamps.double(), eyes.double()).sum().backward()
    assert pred.grad is not None and pred.grad.isfinite().all()
