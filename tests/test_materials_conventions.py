"""Upstream's conventions: what its pictures show is, by this package's, a material with green turned over and albedo encoded."""

from __future__ import annotations

import numpy as np
import pytest

from neuropbr_dist.materials.channels import linear_to_srgb
from neuropbr_dist.materials.conventions import Conventions, as_srgb, turned_over
from neuropbr_dist.materials.families.registry import material_maps
from neuropbr_dist.materials.views import linear_view
from tests.support.upstream_renders import picture, random_environment, view_at

SIZE = 128
ROLES = {"albedo": slice(0, 3), "roughness": slice(3, 4), "metallic": slice(4, 5), "normal": slice(5, 8)}


def differences(conventions: Conventions) -> list[float]:
    """Mean difference, in levels, of upstream's pictures and this package's own of what they were converted to."""
    found = []
    for index in range(4):
        rng = np.random.default_rng(index)
        maps, light, view = material_maps(0, index, SIZE), random_environment(rng), view_at(0.5, index)
        theirs = conventions.converted("view", picture(maps, view, light)).astype(float)
        converted = np.concatenate([conventions.converted(role, maps[k]) for role, k in ROLES.items()])
        linear = linear_view(converted, view.on_plane(), light, SIZE).clip(0, 1)
        found.append(float(np.abs(theirs - linear_to_srgb(linear) * 255).mean()))
    return found


def test_converted_upstreams_pictures_are_this_packages_own():
    """Its aliasing and half a texel's offset are left."""
    right = differences(Conventions(flip_green=True, linear_albedo=True, linear_views=True))
    assert max(right) < 6
    for more, wrong in (
        (2.5, Conventions()),
        (2, Conventions(flip_green=True, linear_views=True)),
        (2, Conventions(flip_green=True, linear_albedo=True)),
        (1.25, Conventions(linear_albedo=True, linear_views=True)),
    ):
        assert min(np.array(differences(wrong)) / right) > more, wrong


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_values_keep_their_type_and_their_ends(kind):
    top = np.iinfo(kind).max if kind != np.float32 else 1
    values = np.array([0, top // 2 if top > 1 else 0.5, top], kind)
    assert as_srgb(values).dtype == turned_over(values).dtype == kind
    np.testing.assert_allclose(as_srgb(values)[[0, 2]], values[[0, 2]], rtol=1e-6)
    assert as_srgb(values)[1] / top == pytest.approx(0.735, abs=0.003)
    np.testing.assert_array_equal(turned_over(turned_over(values)), values)
