"""Changed materials look as the change says: each is rendered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuropbr_dist.data.augment import turn_maps
from neuropbr_dist.data.keyed import uniforms
from neuropbr_dist.data.rendered import changes
from neuropbr_dist.data.rendered.changes import change, mask_of, place, unchanged
from neuropbr_dist.materials.cameras import Camera
from neuropbr_dist.materials.decoding import decode_maps, srgb_to_linear
from neuropbr_dist.materials.lights import Lamp, Lighting, Sky
from neuropbr_dist.materials.plane import encode
from neuropbr_dist.materials.render import render
from neuropbr_dist.materials.scene import Scene, encode_scene

SIDE = 32
EYE, LAMP = np.array([0.3, -0.2, 1.0]), np.array([-0.4, 0.5, 1.1])


@pytest.fixture(scope="module")
def maps():
    """float64 (1, 8, S, S): smooth, with no symmetry; a dielectric that leans."""
    y, x = np.meshgrid(
        np.linspace(0, 2 * np.pi, SIDE, endpoint=False), np.linspace(0, 2 * np.pi, SIDE, endpoint=False)
    )
    waves = [
        0.5 + 0.3 * np.sin(a * x + b * y + c)
        for a, b, c in ((1, 0, 0), (1, 1, 1), (0, 2, 2), (1, 2, 3), (2, 1, 4))
    ]
    normal = np.stack([0.3 * np.cos(x + 1), 0.2 * np.sin(y + x), np.ones_like(x)])
    stacked = np.concatenate(
        [np.stack([*waves[:3], waves[3], 0 * x]), normal / np.linalg.norm(normal, axis=0)]
    )
    return torch.from_numpy(stacked)[None]


def row(**fields):
    made = unchanged()
    for name, value in fields.items():
        made[getattr(changes, name)] = np.array(value)
    return torch.from_numpy(made)[None]


def changed(maps, partners=None, **fields):
    return change(maps, row(**fields), partners, parts=True)


def picture(maps, *, scale=1.0, offset=(0.0, 0.0), side=SIDE):
    """Linear (3, side, side), unclipped light kept below 1, of a scene that is moved by `offset`, then made smaller."""

    def at(point):
        return (np.array(point) + np.array([*offset, 0])) * scale

    lamp = Lamp(at(LAMP), np.array([0.5, 0.4, 0.3]) * scale**2, 0.05 * scale)
    lighting = Lighting((lamp,), Sky(np.full(3, 0.1), np.full(3, 0.1), np.zeros(3)))
    camera = Camera(at(EYE), at([0, 0, 0]), 0.3)
    scene = torch.from_numpy(encode_scene(Scene((camera,), (lighting,))))[None, :1]
    cameras = torch.from_numpy(encode(camera.on_plane(), wrap=True))[None, None]
    seen = render(maps, scene, cameras, torch.zeros(1, 1, dtype=torch.int64), side, dirt=False)
    assert float(seen.max()) < 1
    return srgb_to_linear(seen[0, 0])


def test_nothing_changes_nothing(maps):
    assert torch.equal(changed(maps), maps)


@pytest.mark.parametrize("orientation", range(8))
def test_turned_and_moved_pixels_are_those_of_the_bytes(orientation):
    """As `augment.turn_maps` turns them, which a rendered check of its own holds, and then rolled."""
    stored = torch.randint(0, 256, (8, SIDE, SIDE), generator=torch.Generator().manual_seed(2)).byte()
    expected = decode_maps(turn_maps(stored, orientation).roll((5, -3), (1, 2))[None], torch.float64)
    found = changed(decode_maps(stored[None], torch.float64), PLACE=place(orientation, 5, -3, SIDE))
    torch.testing.assert_close(found, expected)


def test_a_moved_material_is_seen_as_by_a_scene_that_moved_the_other_way(maps):
    found = picture(changed(maps, PLACE=place(0, 5, -3, SIDE)))  # down and to the left
    torch.testing.assert_close(found, picture(maps, offset=(3 / SIDE, 5 / SIDE)), rtol=0, atol=1e-5)
    assert (found - picture(maps)).abs().max() > 0.02


def test_a_part_is_seen_as_by_a_scene_that_shrank(maps):
    """Where the picture shows the part itself: beyond its edges other things follow."""
    part = 0.75
    fine = torch.nn.functional.interpolate(maps, scale_factor=8, mode="bicubic")
    fine[:, 5:] = torch.nn.functional.normalize(fine[:, 5:], dim=1)
    found, expected = picture(changed(fine, PART=part)), picture(fine, scale=part)
    middle = slice(SIDE // 4, -SIDE // 4)
    off = (found - expected)[:, middle, middle].abs().max()
    assert off < 2e-3 < (found - picture(fine))[:, middle, middle].abs().max()


def test_a_tint_is_a_factor_of_what_the_albedo_adds(maps):
    """The light of a dielectric is a part without its albedo and one that grows with it, channel by channel."""
    tint = [0.9, 0.7, 0.5]
    black = maps.clone()
    black[:, :3] = 0
    share = picture(maps) - picture(black)
    found = picture(changed(maps, TINT=tint)) - picture(black)
    torch.testing.assert_close(found, share * torch.tensor(tint)[:, None, None], rtol=0, atol=2e-6)
    assert float(changed(maps, TINT=np.full(3, 9.0))[:, :3].max()) == pytest.approx(1)


def test_a_rougher_mirror_has_a_wider_highlight(maps):
    flat = maps.clone()
    flat[:, :3], flat[:, 3], flat[:, 4] = 0.2, 0.2, 1
    flat[:, 5:] = torch.tensor([0.0, 0.0, 1.0], dtype=maps.dtype)[:, None, None]
    rougher = flat.clone()
    rougher[:, 3] = 0.45
    before, after = picture(flat), picture(changed(flat, ROUGHER=0.25))
    torch.testing.assert_close(after, picture(rougher), rtol=0, atol=1e-6)

    def wide(light):
        return float((light > light.max() / 2).double().mean())

    assert after.max() < before.max() and wide(after) > 1.5 * wide(before)
    assert float(changed(maps, ROUGHER=0.5)[:, 3].max()) == 1


def test_a_roughness_of_any_kind_has_the_mean_and_the_pattern_it_is_given(maps):
    own = maps[:, 3] - maps[:, 3].mean()
    other = maps.clone()
    other[:, 3] = 0.45 - 0.8 * own
    found = changed(maps, LEVEL=0.45, CONTRAST=-0.8)
    torch.testing.assert_close(found, other, rtol=0, atol=1e-6)
    torch.testing.assert_close(picture(found), picture(other), rtol=0, atol=1e-6)
    assert (picture(found) - picture(maps)).abs().max() > 0.005
    both = changed(maps, LEVEL=0.95, CONTRAST=1.5, ROUGHER=0.1)[:, 3]
    assert float(both.max()) == 1 and float(both.min()) < 0.8


def test_a_higher_relief_is_that_of_steeper_slopes_and_throws_more_shade(maps):
    """Normals are of slopes (-x / z, -y / z): twice the height is twice the slope, whatever it was."""
    x, y, z = maps[:, 5:].unbind(1)
    steep = torch.cat(
        [maps[:, :5], torch.nn.functional.normalize(torch.stack([2 * x, 2 * y, z], 1), dim=1)], 1
    )
    found = changed(maps, RELIEF=2)
    torch.testing.assert_close(found, steep)
    torch.testing.assert_close(changed(found, RELIEF=0.5), maps)
    torch.testing.assert_close(picture(found), picture(steep), rtol=0, atol=1e-6)

    flat = maps.clone()
    flat[:, 5:] = torch.tensor([0.0, 0.0, 1.0], dtype=maps.dtype)[:, None, None]
    shade = [
        float((picture(seen) - picture(flat)).abs().mean())
        for seen in (changed(maps, RELIEF=0.5), maps, found)
    ]
    assert shade[0] < 0.85 * shade[1] and shade[1] < 0.85 * shade[2]


@pytest.fixture
def mixture():
    mask, waves = changes.mask(uniforms("a mask"))
    return {"MASK": [mask[0], 0.3], "WAVES": waves}


def test_a_mixture_shows_one_material_here_and_the_other_there(maps, mixture):
    partner = maps.roll(7, -1).flip(1)[:, [7, 6, 5, 4, 3, 0, 1, 2]].clamp(0.05, 1)
    partner[:, 5:] = torch.nn.functional.normalize(partner[:, 5:] - 0.4, dim=1)
    partner[:, 4] = 1
    found, share = changed(maps, partner, **mixture), mask_of(row(**mixture), SIDE)[0, 0]
    for there, whose in ((share == 0, maps), (share == 1, partner)):
        assert 0.1 < float(there.double().mean()) < 0.9
        torch.testing.assert_close(found[0][:, there], whose[0][:, there])
    between = (share > 0) & (share < 1)
    low, high = torch.minimum(maps, partner), torch.maximum(maps, partner)
    assert ((found >= low - 1e-9) & (found <= high + 1e-9))[0, :5, between].all() and between.any()
    torch.testing.assert_close(found[0, 5:].norm(dim=0), torch.ones(SIDE, SIDE, dtype=maps.dtype))
    # …and so does its picture, seen from straight above, but for the light that the plane throws back.
    views = [picture(each, side=64) for each in (found, maps, partner)]
    nearer = (views[0] - views[1]).abs().sum(0) < (views[0] - views[2]).abs().sum(0)
    assert 0.2 < float(nearer.double().mean()) < 0.9
    closest = torch.minimum(*((views[0] - each).abs().amax(0) for each in views[1:]))
    assert float((closest < 0.01).double().mean()) > 0.4


def test_the_relief_of_another_is_all_that_is_taken_of_it(maps):
    partner = maps.roll(7, -1).flip(2)
    partner[:, :5] = 0.5
    found = changed(maps, partner, OTHER_RELIEF=1)
    assert torch.equal(found[:, :5], maps[:, :5]) and torch.equal(found[:, 5:], partner[:, 5:])
    # …and is turned, cut and raised with the rest.
    whole = torch.cat([maps[:, :5], partner[:, 5:]], dim=1)
    how = {"PLACE": place(5, 3, 8, SIDE), "PART": 0.7, "RELIEF": 1.5, "LEVEL": 0.4, "CONTRAST": 1}
    assert torch.equal(changed(maps, partner, OTHER_RELIEF=1, **how), changed(whole, **how))
    # What has a partner beside one that hasn't: it stays what it is to the bit.
    both = change(
        torch.cat([maps, maps]),
        torch.cat([row(OTHER_RELIEF=1), row()]),
        torch.cat([partner, 0 * partner]),
        parts=True,
    )
    assert torch.equal(both[1:], maps) and torch.equal(both[:1], found)


def test_masks_tile_are_smooth_and_cover_about_half():
    shares, steps = [], []
    for number in range(40):
        mask, waves = changes.mask(uniforms(f"mask {number}"))
        each = row(MASK=mask, WAVES=waves)
        coarse, fine = mask_of(each, 64), mask_of(each, 128)
        assert float((torch.nn.functional.avg_pool2d(fine, 2) - coarse).abs().mean()) < 0.03
        shares.append(float(coarse.mean()))
        inside, across = coarse.diff(dim=-1).abs().max(), (coarse[..., 0] - coarse[..., -1]).abs().max()
        steps.append(float(across / inside.clamp(min=1e-3)))
    assert 0.4 < np.mean(shares) < 0.6 and min(shares) < 0.3 and max(shares) > 0.7
    assert max(steps) < 1.5
    assert not mask_of(row(), 16).any()
