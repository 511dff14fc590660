"""Built-in materials: determinism, maps as in nature, the renderer's maths, the cache, the files on disk."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neuropbr_dist.data.builtin import BuiltinCache, fill, generate
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.cameras import FIELD_OF_VIEW, Camera
from neuropbr_dist.materials.families import FAMILIES, family_name, material_maps, registry
from neuropbr_dist.materials.families.surface import Tile
from neuropbr_dist.materials.lights import Lamp, Lighting, Sky, Window, random_sky
from neuropbr_dist.materials.surroundings import irradiance_at, sky_radiance
from neuropbr_dist.materials.views import linear_view, render_views

DARK = Sky(zenith=np.zeros(3), horizon=np.zeros(3), lean=np.zeros(3))
FROM_ABOVE = Camera(position=np.array([0.0, 0.0, 1.0]), target=np.zeros(3))


def index_of(family: str) -> int:
    return next(i for i in range(len(FAMILIES)) if family_name(0, i) == family)


def uniform_maps(albedo=128, roughness=128, metallic=0, normal=(128, 128, 255), size=16) -> np.ndarray:
    values = np.array([albedo, albedo, albedo, roughness, metallic, *normal], np.uint8)
    return np.broadcast_to(values[:, None, None], (8, size, size)).copy()


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_valid(family):
    maps = material_maps(0, index_of(family), 32)
    assert maps.shape == (8, 32, 32) and maps.dtype == np.uint8 and maps.flags.c_contiguous
    normal = maps[5:].astype(np.float64) / 127.5 - 1
    assert np.abs(np.linalg.norm(normal, axis=0) - 1).max() < 0.02
    assert normal[2].min() > 0
    assert maps[:4].std() > 5, "a flat material teaches nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_same_material_at_two_resolutions(family):
    small, large = material_maps(0, index_of(family), 64), material_maps(0, index_of(family), 256)
    reduced = large.reshape(8, 64, 4, 64, 4).mean((2, 4))
    assert np.abs(reduced - small).mean() < 8
    other = material_maps(0, index_of(family) + len(FAMILIES), 64)
    assert np.abs(reduced - other).mean() > 2 * np.abs(reduced - small).mean()


def test_consecutive_materials_are_varied():
    assert len(FAMILIES) >= 8
    for start in (0, 5, 100):
        assert len({family_name(3, i) for i in range(start, start + 8)}) == 8


@pytest.mark.parametrize("family", ["brushed_metal", "hammered_metal", "tread_plate"])
def test_metals_are_metallic(family):
    share = [material_maps(0, index_of(family) + k * len(FAMILIES), 32)[4].mean() / 255 for k in range(3)]
    assert np.mean(share) > 0.6


@pytest.mark.parametrize("family", ["stone", "wood", "fabric", "marble", "leather"])
def test_others_are_not(family):
    assert material_maps(0, index_of(family), 32)[4].max() == 0


def test_rust_is_rough_and_not_metallic_where_steel_is():
    """Maps are correlated: where a bare plate corrodes, metal goes and roughness comes, together."""
    pairs = [material_maps(0, index_of("rust") + k * len(FAMILIES), 64)[3:5] for k in range(8)]
    roughness, metallic = max(pairs, key=lambda pair: pair[1].std()).reshape(2, -1).astype(float)
    assert np.corrcoef(roughness, metallic)[0, 1] < -0.5


def test_same_bytes_again_and_in_another_process():
    def digest() -> str:
        maps = material_maps(7, 4, 32)
        views = [render_views(maps, 7, 4, dirty=dirty) for dirty in (False, True)]
        return hashlib.sha256(b"".join(a.tobytes() for a in (maps, *views))).hexdigest()

    code = (
        "import hashlib; from neuropbr_dist.materials.families import material_maps\n"
        "from neuropbr_dist.materials.views import render_views\n"
        "m = material_maps(7, 4, 32); v = [render_views(m, 7, 4, dirty=d) for d in (False, True)]\n"
        "print(hashlib.sha256(b''.join(a.tobytes() for a in (m, *v))).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert digest() == digest() == elsewhere.stdout.strip()


def test_seed_and_index_matter():
    first = material_maps(0, 0, 32)
    n = len(FAMILIES)
    assert not np.array_equal(first, material_maps(0, n, 32))
    assert not np.array_equal(first, material_maps(n, 0, 32))
    with pytest.raises(UserError, match="seed -1"):
        material_maps(-1, 0, 32)
    with pytest.raises(UserError, match="at least 4"):
        material_maps(0, 0, 0)


def test_dirty_views_differ_from_clean_ones_of_the_same_maps():
    maps = material_maps(0, 2, 64)
    before = maps.copy()
    clean, dirty = (render_views(maps, 0, 2, dirty=d) for d in (False, True))
    assert clean.shape == dirty.shape == (3, 3, 64, 64) and clean.dtype == dirty.dtype == np.uint8
    assert np.array_equal(maps, before)
    assert all(np.abs(c.astype(int) - d).mean() > 4 for c, d in zip(clean, dirty, strict=True))
    assert all(np.abs(clean[a].astype(int) - clean[b]).mean() > 2 for a, b in ((0, 1), (1, 2), (0, 2)))


def test_views_follow_the_maps():
    """A picture lies roughly over its albedo map: it looks like it, and not like the map mirrored or upside down."""
    maps = material_maps(0, index_of("concrete"), 64)
    albedo = maps[:3].astype(float).mean(0)
    for view in render_views(maps, 0, index_of("concrete"), dirty=False).astype(float).mean(1):
        upright, mirrored, upside_down = (
            np.corrcoef(view.ravel(), a.ravel())[0, 1] for a in (albedo, albedo[:, ::-1], albedo[::-1])
        )
        assert upright > 0.4 and upright > mirrored + 0.2 and upright > upside_down + 0.2


@pytest.mark.parametrize(("towards", "channel"), [((1.0, 0.0), 0), ((0.0, 1.0), 1)])
def test_normals_are_opengl(towards, channel):
    """A bump: its right side has +X and its upper side +Y, and a lamp over there brightens that side."""
    from neuropbr_dist.materials.families.surface import Surface, Tile, encode

    tile = Tile(64, np.random.default_rng(0))
    bump = 0.15 * np.exp(-((tile.x - 0.5) ** 2 + (tile.y - 0.5) ** 2) / 0.02)
    grey = np.full((3, 64, 64), 0.5, np.float32)
    maps = encode(Surface(bump, grey, np.full_like(bump, 0.9), np.zeros_like(bump)).channels(), 1)
    right, left, upper, lower = (32, 42), (32, 21), (21, 32), (42, 32)
    bright, dark = (right, left) if channel == 0 else (upper, lower)
    assert maps[5 + channel][bright] > 150 > 105 > maps[5 + channel][dark]

    lamp = Lamp(np.array([3 * towards[0], 3 * towards[1], 2.0]), np.full(3, 20.0))
    picture = linear_view(maps, FROM_ABOVE.on_plane(), Lighting((lamp,), DARK), 64).mean(0)
    # The camera sees 1.04 repeats, so picture and map coordinates nearly agree.
    assert picture[bright] > 1.5 * picture[dark]


def ggx_radiance(albedo, roughness, metallic, normal, point, eye, lamp):
    """Cook-Torrance for one point and one lamp, in float64, after Walter 2007 and Heitz 2014."""
    normal = normal / np.linalg.norm(normal)
    view, light = eye - point, lamp.position - point
    distance = np.linalg.norm(light)
    view, light = view / np.linalg.norm(view), light / distance
    half = (view + light) / np.linalg.norm(view + light)
    n_l, n_v = max(normal @ light, 0.0), normal @ view
    a2 = roughness**4
    d = a2 / (np.pi * ((normal @ half) ** 2 * (a2 - 1) + 1) ** 2)
    tail = lambda c: (-1 + np.sqrt(1 + a2 * (1 / c**2 - 1))) / 2  # noqa: E731
    g = 1 / (1 + tail(n_l) + tail(n_v))
    f0 = 0.04 * (1 - metallic) + albedo * metallic
    f = f0 + (1 - f0) * (1 - view @ half) ** 5
    brdf = d * g * f / (4 * n_l * n_v) + (1 - f) * (1 - metallic) * albedo / np.pi
    return brdf * lamp.intensity * n_l / distance**2


@pytest.mark.parametrize("metallic", [0, 255])
@pytest.mark.parametrize("roughness", [77, 200])
def test_renderer_against_ggx_per_pixel(roughness, metallic):
    """Frontal view of a uniform, tilted surface under two lamps, one sample a pixel."""
    size = 520
    maps = uniform_maps(150, roughness, metallic, (150, 110, 250))
    lamps = (
        Lamp(np.array([0.6, 0.8, 2.0]), np.array([9.0, 8.0, 7.0])),
        Lamp(np.array([-1, 0.3, 1.5]), np.ones(3)),
    )
    picture = linear_view(maps, FROM_ABOVE.on_plane(), Lighting(lamps, DARK, exposure=1.3), size, samples=1)
    albedo = ((150 / 255 + 0.055) / 1.055) ** 2.4
    normal = np.array([150, 110, 250]) / 127.5 - 1
    for row, column in [(260, 260), (0, 0), (519, 3), (100, 400)]:
        x, y = ((np.array([column, size - 1 - row]) + 0.5) / size * 2 - 1) * np.tan(FIELD_OF_VIEW / 2)
        material = (
            albedo,
            roughness / 255,
            metallic / 255,
            normal,
            np.array([x, y, 0.0]),
            FROM_ABOVE.position,
        )
        expected = 1.3 * sum(ggx_radiance(*material, lamp) for lamp in lamps)
        np.testing.assert_allclose(picture[:, row, column], expected, rtol=2e-3)


def test_texture_lies_where_the_camera_looks():
    """One dark texel: straight from above, its pixel is where the perspective says."""
    maps = uniform_maps(albedo=255, roughness=255, size=64)
    maps[:3, 10, 40] = 0  # row 10, column 40 of the map
    lamp = Lamp(np.array([0.0, 0.0, 3.0]), np.full(3, 9.0))
    picture = linear_view(maps, FROM_ABOVE.on_plane(), Lighting((lamp,), DARK), 520, samples=1)[0]
    across = 2 * np.tan(FIELD_OF_VIEW / 2)  # plane units that the picture spans
    row, column = (((np.array([10, 40]) + 0.5) / 64 - 0.5) / across + 0.5) * 520
    # The plane repeats, and a little of the next repeats is in the picture: look near the one texel.
    window = picture[60:140, 280:380]
    found = np.unravel_index(window.argmin(), window.shape)
    assert np.hypot(found[0] + 60.5 - row, found[1] + 280.5 - column) < 2


def test_sky_irradiance_against_sampling():
    """The spherical-harmonic irradiance of a sky with a window, to a few per cent of a plain sum over directions."""
    centre, across = np.array([0.6, 0.0, 0.8]), np.array([0.0, 1.0, 0.0])
    window = Window(centre, across, 0.4, 0.3, np.array([4.0, 3.0, 2.0]))
    sky = Sky(np.array([1.0, 1.2, 1.4]), np.array([0.5, 0.5, 0.4]), np.array([0.0, 0.5, 0.0]), (window,))
    towards = np.random.default_rng(0).standard_normal((3, 200_000))
    towards /= np.linalg.norm(towards, axis=0)
    towards[2] = np.abs(towards[2])
    numbers = map(torch.from_numpy, sky.numbers())
    light = sky_radiance(*numbers, torch.from_numpy(towards)[:, None], 0.05)[:, 0].numpy()
    for normal in (np.array([0.0, 0.0, 1.0]), np.array([0.28, 0.0, 0.96])):
        exact = (light * np.maximum(normal @ towards, 0)).mean(1) * 2 * np.pi
        found = irradiance_at(torch.from_numpy(sky.irradiance), torch.from_numpy(normal)[:, None, None])
        np.testing.assert_allclose(found[:, 0, 0], exact, rtol=0.06)


def test_irradiance_from_above_is_that_of_the_normal_up():
    """To the bit: exposures are made of it, and pictures of built-in materials with them."""
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)[:, None, None]
    for seed in range(20):
        sky = random_sky(np.random.default_rng(seed))
        expected = irradiance_at(torch.from_numpy(sky.irradiance), up)[:, 0, 0].numpy()
        assert np.array_equal(sky.irradiance_from_above(), expected)


def test_cache_makes_once_and_agrees(tmp_path):
    cache = BuiltinCache(tmp_path, seed=1, size=16)
    done = []
    fill([cache], [0, 3], progress=done.append)
    assert done == [1, 1]
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npy")}
    assert len(files) == 6
    maps, dirty = cache.maps(3), cache.views(3, "dirty")
    assert isinstance(maps, np.memmap) and not maps.flags.writeable
    np.testing.assert_array_equal(maps, material_maps(1, 3, 16))
    np.testing.assert_array_equal(dirty, render_views(material_maps(1, 3, 16), 1, 3, dirty=True))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == files


def test_a_material_is_drawn_once_for_all_small_sides(tmp_path, monkeypatch):
    drawn: list[int] = []

    class Counted(Tile):
        def __init__(self, size, rng):
            drawn.append(size)
            super().__init__(size, rng)

    monkeypatch.setattr(registry, "Tile", Counted)
    caches = [BuiltinCache(tmp_path, 7, side) for side in (16, 64, 1024)]
    fill(caches, [0, 3], kinds=())
    assert drawn == [512, 1024] * 2
    for cache in caches:
        for index in (3, 0):
            registry._drawn_small.cache_clear()
            np.testing.assert_array_equal(cache.maps(index), material_maps(7, index, cache.size))


@pytest.mark.parametrize("workers", [1, 2])
def test_cache_that_cannot_be_written_is_named(tmp_path, workers):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"file/.*: can't keep built-in materials there: .*data.builtin_cache"
    ):
        fill([BuiltinCache(tmp_path / "file", seed=1, size=16)], [0, 1], workers=workers)


def test_cache_that_breaks_in_use_is_named(tmp_path):
    """What a loader process raises must be a person's to mend: a run that gets it saves first."""
    cache = BuiltinCache(tmp_path, seed=1, size=16)
    fill([cache], [0])
    for path in tmp_path.rglob("*.npy"):
        path.unlink()
        path.mkdir()
    with pytest.raises(UserError, match=r"can't keep built-in materials there: .*Is a directory"):
        cache.maps(0)


def test_cache_misses_what_is_asked_for_alone(tmp_path):
    cache = BuiltinCache(tmp_path, seed=1, size=16)
    fill([cache], [0], kinds=["clean"])
    assert cache.missing([0, 1], ["clean"]) == [1]
    assert cache.missing([0, 1]) == [0, 1]


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "shape"])
def test_cache_remakes_a_damaged_file(tmp_path, damage):
    cache = BuiltinCache(tmp_path, seed=1, size=16)
    good = cache.maps(0).copy()
    (path,) = tmp_path.rglob("*_maps.npy")
    whole = path.read_bytes()
    if damage == "shape":
        np.save(path, np.zeros((8, 4, 4), np.uint8))
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-100], "foreign": b"no array at all" * 50}[damage])
    np.testing.assert_array_equal(cache.maps(0), good)
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path], "no temporary file stays behind"


@pytest.mark.multiprocess
def test_cache_filled_by_two_processes_at_once(tmp_path):
    code = f"from neuropbr_dist.data.builtin import BuiltinCache, fill; fill([BuiltinCache({str(tmp_path)!r}, 2, 16)], range(3))"
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0]
    cache = BuiltinCache(tmp_path, 2, 16)
    assert sorted(p.suffix for p in cache.folder.iterdir()) == [".npy"] * 9
    np.testing.assert_array_equal(cache.maps(2), material_maps(2, 2, 16))


def test_default_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tmp_path / "neuropbr_dist" in BuiltinCache(None, 0, 16).folder.parents
    for ignored in ("", "not/absolute"):  # by the XDG base directory specification
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert Path.home() / ".cache" / "neuropbr_dist" in BuiltinCache(None, 0, 16).folder.parents


@pytest.mark.multiprocess
def test_generate_writes_the_guides_layout(tmp_path, capfd):
    out = tmp_path / "set"
    generate(out, count=3, size=16, seed=5, workers=2)
    assert "3/3" in capfd.readouterr().err
    names = json.loads((out / "input/render_metadata.json").read_text())
    assert names == {f"sample_{i:04d}": f"{family_name(5, i)}_{i:04d}" for i in range(3)}
    maps = material_maps(5, 1, 16)
    folder = out / "output" / names["sample_0001"]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "albedo.png")), maps[:3].transpose(1, 2, 0))
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "normal.png")), maps[5:].transpose(1, 2, 0))
    assert Image.open(folder / "roughness.png").mode == Image.open(folder / "metallic.png").mode == "L"
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "roughness.png")), maps[3])
    views = render_views(maps, 5, 1, dirty=True)
    for k in range(3):
        picture = np.asarray(Image.open(out / f"input/dirty/sample_0001/{k}.png"))
        np.testing.assert_array_equal(picture, views[k].transpose(1, 2, 0))


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 0}, {"size": -8}, {"seed": -1}])
def test_generate_refuses_before_it_writes(tmp_path, wrong):
    ((name, value),) = wrong.items()
    order = dict(count=1, size=16, seed=5, workers=0, progress=False)
    with pytest.raises(UserError, match=f"{name}.* {value}$"):
        generate(tmp_path / "set", **{**order, **wrong})
    assert not list(tmp_path.iterdir())


def test_generate_names_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/set: can't be written: Not a directory$"):
        generate(tmp_path / "file/set", count=1, size=16, seed=5, workers=0, progress=False)


def test_generate_goes_on_after_a_kill_and_clears_up(tmp_path):
    """What a killed call was writing has a name of its own; the next call, which has the folder to itself, drops it."""
    out = tmp_path / "set"
    order = dict(count=2, size=16, seed=5, workers=0, progress=False)
    generate(out, **order)
    left = out / "input/clean" / f".{'0a' * 16}.tmp"
    shutil.copytree(out / "input/clean/sample_0001", left)
    generate(out, **order)
    assert not left.exists() and len(list((out / "input/clean").iterdir())) == 2


def test_generate_resumes_and_refuses(tmp_path):
    out = tmp_path / "set"
    order = dict(size=16, seed=5, workers=0, progress=False)
    generate(out, count=2, curriculum_dirty=False, **order)
    assert not (out / "input/dirty").exists()
    lost, kept = out / "input/clean/sample_0001", out / "input/clean/sample_0000/0.png"
    for picture in lost.iterdir():
        picture.unlink()
    lost.rmdir()
    written = kept.stat().st_mtime_ns
    generate(out, count=3, **order)
    assert kept.stat().st_mtime_ns == written
    assert sorted(p.name for p in lost.iterdir()) == ["0.png", "1.png", "2.png"]
    assert len(list((out / "input/dirty").iterdir())) == len(list((out / "output").iterdir())) == 3
    assert len(json.loads((out / "input/render_metadata.json").read_text())) == 3

    with pytest.raises(UserError, match="seed"):
        generate(out, count=3, **{**order, "seed": 6})
    with pytest.raises(UserError, match="sample_0002"):
        generate(out, count=2, **order)
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="not empty"):
        generate(tmp_path, count=1, **order)
