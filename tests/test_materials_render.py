"""Scenes drawn on the host, rendered on the device: the same pictures whatever else is in the batch, and as before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuropbr_dist.materials import lens
from neuropbr_dist.materials.cameras import Camera
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.materials.families import material_maps
from neuropbr_dist.materials.lights import WINDOWS, Lamp, Lighting, Sky, random_sky
from neuropbr_dist.materials.plane import canonical, encode, fault_of
from neuropbr_dist.materials.render import render
from neuropbr_dist.materials.scene import (
    SCENE,
    Scene,
    builtin_scene,
    decode_scene,
    encode_scene,
    random_scene,
)
from neuropbr_dist.materials.views import one_thread, render_views
from tests.support.distributed import ROOT

SIDE = 24
DARK = Sky(*np.zeros((3, 3)))


def encoded(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scenes (B, 3, SCENE) and their cameras (B, 3, 14)."""
    cameras = [np.stack([encode(camera.on_plane(), True) for camera in scene.cameras]) for scene in scenes]
    return torch.from_numpy(np.stack([encode_scene(s) for s in scenes])), torch.from_numpy(np.stack(cameras))


@pytest.fixture(scope="module")
def batch():
    """Maps, scenes, cameras and keys of three dirty samples; the last has a lamp near the camera."""
    maps = decode_maps(torch.stack([torch.from_numpy(material_maps(42, i, 32)) for i in (3, 4, 7)]))
    drawn = [random_scene(np.random.default_rng([1, i]), dirty=True) for i in range(40)]
    near = [scene for scene in drawn if has_near_lamp(scene)]
    scenes = [*drawn[:2], near[0]]
    return maps, *encoded(scenes), torch.arange(9).reshape(3, 3) + (7 << 40)


def has_near_lamp(scene: Scene) -> bool:
    camera, lamps = scene.cameras[0], scene.lighting[0].lamps
    return any(np.linalg.norm(lamp.position - camera.position) < 0.3 for lamp in lamps)


def test_the_set_of_the_numpy_renderer_stays_what_it_was():
    """Stone and brushed metal as that renderer stored them: a level apart at most."""
    before = np.load(ROOT / "tests/golden/builtin_views_32px.npy")
    for index, views in zip((3, 4), before, strict=True):
        found = render_views(material_maps(42, index, 32), 42, index, dirty=False)
        difference = np.abs(found.astype(int) - views)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.02


def test_dirt_is_dirt(batch):
    """The dirty pictures of a scene have all that was drawn: take one thing away, and they change where it was."""
    maps, scenes, cameras, keys = batch
    whole = render(maps, scenes, cameras, keys, SIDE)
    for name in ("strokes", "smudges", "scratches", "noise"):
        without = scenes.clone()
        getattr(decode_scene(without), name).zero_()
        changed = (render(maps, without, cameras, keys, SIDE) - whole).abs().amax((1, 2, 3, 4))
        assert (changed > 0.01).all(), name
    clean = scenes.clone()
    for name in ("strokes", "penumbra", "smudges", "scratches", "shift"):
        getattr(decode_scene(clean), name).zero_()
    fast = render(maps, clean, cameras, keys, SIDE, dirt=False)
    torch.testing.assert_close(render(maps, clean, cameras, keys, SIDE), fast, rtol=0, atol=1e-6)


def test_a_pixel_is_its_own(batch):
    """Alone or in a batch, in strips or whole, one view or three: the same bits."""
    maps, scenes, cameras, keys = batch
    with one_thread():
        whole = render(maps, scenes, cameras, keys, SIDE)
        strip = render(maps, scenes, cameras, keys, SIDE, rows=(5, 18))
        alone = render(maps[1:2], scenes[1:2, 2:], cameras[1:2, 2:], keys[1:2, 2:], SIDE)
    torch.testing.assert_close(strip, whole[..., 5:18, :], rtol=0, atol=1e-6)
    torch.testing.assert_close(alone, whole[1:2, 2:], rtol=0, atol=1e-6)


def test_noise_is_of_the_key_and_the_pixel():
    keys = torch.tensor([5, 6, 5 + (1 << 32), 5])
    found = lens.grain(keys, (0, 64), 64, torch.float64)
    assert torch.equal(found[0], found[3])
    assert torch.equal(lens.grain(keys, (10, 20), 64, torch.float64), found[:, :, 10:20])
    values = found[:3].reshape(9, -1)
    assert (torch.corrcoef(values) - torch.eye(9)).abs().max() < 0.06
    along = [found[0, 0, :, :-1] * found[0, 0, :, 1:], found[0, 0, :-1] * found[0, 0, 1:]]
    assert max(abs(float(product.mean())) for product in along) < 0.06
    assert values.mean().abs() < 0.02 and (values.std() - 1).abs() < 0.02
    assert (values.pow(4).mean() - 3).abs() < 0.15  # as a normal distribution's


def test_float32_is_float64(batch):
    """But for pixels at edges of texels and windows."""
    maps, scenes, cameras, keys = batch
    single = render(maps, scenes, cameras, keys, SIDE)
    double = render(maps.double(), scenes, cameras, keys, SIDE)
    assert double.dtype == torch.float64
    difference = (single - double).abs()
    assert (difference < 1e-3).double().mean() > 0.999 and difference.mean() < 2e-5


def test_compiled_is_eager_in_one_graph(batch):
    maps, scenes, cameras, keys = batch
    torch._dynamo.reset()
    compiled = torch.compile(render, fullgraph=True, backend="aot_eager")
    eager = render(maps, scenes, cameras, keys, SIDE)
    torch.testing.assert_close(compiled(maps, scenes, cameras, keys, SIDE), eager, rtol=0, atol=1e-5)


def test_gradients_reach_the_maps(batch):
    """Finite everywhere, and right where a finite difference says so."""
    maps, scenes, cameras, keys = batch
    leaf = maps[1:2].double().requires_grad_()
    picture = lambda m: render(m, scenes[1:2], cameras[1:2], keys[1:2], 8).sum()  # noqa: E731
    (gradient,) = torch.autograd.grad(picture(leaf), leaf)
    assert torch.isfinite(gradient).all()
    assert all(gradient[0, channel].abs().max() > 1e-4 for channel in range(8))
    direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-6 * direction
    with torch.no_grad():
        slope = (picture(leaf + step) - picture(leaf - step)) / 2
    assert float((gradient * step).sum()) == pytest.approx(float(slope), rel=1e-3)


def test_numbers_of_a_scene():
    scene = builtin_scene(3, 5, dirty=True)
    rows = encode_scene(scene)
    assert rows.shape == (3, SCENE) and rows.dtype == np.float32
    found = decode_scene(torch.from_numpy(rows))
    light, dirt = scene.lighting[0], scene.dirt
    np.testing.assert_allclose(found.lamps[0, 0, :3], light.lamps[0].position, rtol=1e-6)
    assert found.lamps[:, len(light.lamps) :].abs().max() == 0
    np.testing.assert_allclose(found.irradiance[1], light.sky.irradiance, rtol=1e-6)
    np.testing.assert_allclose(found.gain, scene.response.gain, rtol=1e-6)
    np.testing.assert_allclose(found.scratches[2, : len(dirt.scratches)], dirt.scratches, rtol=1e-6)
    assert not torch.equal(found.shift[0], found.shift[1])
    clean = decode_scene(torch.from_numpy(encode_scene(builtin_scene(3, 5, dirty=False))))
    assert all(getattr(clean, name).abs().max() == 0 for name in ("strokes", "smudges", "scratches", "noise"))
    windows = random_sky(np.random.default_rng(0)).windows[:1] * (WINDOWS + 1)
    with pytest.raises(ValueError):
        Sky(*np.zeros((3, 3)), windows).numbers()


def test_no_light_no_picture():
    nothing = torch.zeros(1, 3, SCENE)
    maps = decode_maps(torch.from_numpy(material_maps(1, 1, 16))[None])
    _, cameras = encoded([builtin_scene(1, 1, dirty=False)])
    assert render(maps, nothing, cameras, torch.zeros(1, 3, dtype=torch.int64), 8).max() < 1e-6


@pytest.mark.parametrize("dirty", [False, True])
def test_random_scenes(dirty):
    """Keyed, well exposed, with the shares that are promised, seen by cameras that can be."""
    draw = lambda i: random_scene(np.random.default_rng([5, i]), dirty=dirty, environments=4)  # noqa: E731
    scenes = [draw(i) for i in range(240)]
    np.testing.assert_array_equal(encode_scene(scenes[3]), encode_scene(draw(3)))
    assert all((scene.dirt is not None) == dirty for scene in scenes)
    shares = {
        "near": np.mean([has_near_lamp(scene) for scene in scenes]),
        "other": np.mean([scene.lighting[0].sky is not scene.lighting[1].sky for scene in scenes]),
        "around": np.mean([scene.lighting[0].environment is not None for scene in scenes]),
    }
    bench = [scene for scene in scenes if scene.lighting[0].legacy]
    assert len(bench) / len(scenes) == pytest.approx(1 / 4, abs=0.07)
    elsewhere = {"near": 1 / 3, "other": 1 / 3, "around": 1 / 2}
    assert shares == pytest.approx({name: 3 / 4 * share for name, share in elsewhere.items()}, abs=0.07)
    assert all(len({id(light) for light in scene.lighting}) == 1 for scene in bench)
    cameras = [camera for scene in scenes for camera in scene.cameras]
    assert all(fault_of(camera.on_plane()) is None for camera in cameras)
    for camera in cameras[:60]:
        plane = camera.on_plane()
        np.testing.assert_allclose(canonical(plane).map_to_view, plane.map_to_view)
    tilts = np.degrees(
        [np.arccos((c.position - c.target)[2] / np.linalg.norm(c.position - c.target)) for c in cameras]
    )
    assert 42 < tilts.max() <= 45.01 and np.mean(tilts > 35) > 0.1
    lamps = [lamp for scene in scenes for light in scene.lighting for lamp in light.lamps]
    assert (
        min(lamp.position[2] for lamp in lamps) > 0.1 and max(len(s.lighting[0].lamps) for s in scenes) == 3
    )


def test_white_paper_is_well_exposed():
    """In the picture's middle, unsmudged: three of four views between a quarter and full scale of linear light."""
    paper = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 1])[None, :, None, None].expand(1, 8, 8, 8)
    read = []
    for i in range(60):
        scenes, cameras = encoded([random_scene(np.random.default_rng([2, i]))])
        read += render(paper, scenes, cameras, torch.zeros(1, 3, dtype=torch.int64), 9, samples=1)[
            0, :, 1, 4, 4
        ].tolist()
    linear = np.array(read) ** 2.2
    assert np.mean((linear > 0.25) & (linear < 1)) > 0.75 and 0.45 < np.median(linear) < 0.9


def test_the_caster_shades_the_key_lamp_alone():
    camera = Camera(np.array([0, 0, 1.0]), np.zeros(3))
    scene = builtin_scene(0, 0, dirty=True)
    key, fill = (Lamp(np.array([0.1, 0.2, 2.0]), np.full(3, power)) for power in (3.0, 1.0))
    paper = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 1])[None, :, None, None].expand(1, 8, 8, 8)
    found = {}
    for name, lamps in {"both": (key, fill), "fill": (fill,)}.items():
        dirt = scene.dirt.__class__(
            np.array([[-2, 1.0, 2, 1.0, 1.0]]), 0.1, np.zeros((0, 5)), np.zeros((0, 6)), np.zeros((3, 2))
        )
        made = Scene((camera,) * 3, (Lighting(lamps, DARK),) * 3, dirt=dirt)
        if name == "fill":  # as the second lamp, behind one that is off
            made = Scene(
                (camera,) * 3, (Lighting((Lamp(key.position, np.zeros(3)), fill), DARK),) * 3, dirt=dirt
            )
        scenes, cameras = encoded([made])
        found[name] = render(paper, scenes, cameras, torch.zeros(1, 3, dtype=torch.int64), 9)[0, 0, 0]
    torch.testing.assert_close(found["both"][:3], found["fill"][:3])  # the upper half is in the shadow
    assert (found["both"][6:] > found["fill"][6:] + 0.1).all()
