"""Views rendered online: which samples there are, what is drawn for each, what reaches the device."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from neuropbr_dist.config import DataConfig, TrainConfig, TransformConfig, from_yaml, resolve, to_yaml
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.batch import filler
from neuropbr_dist.data.builtin.cache import BuiltinCache
from neuropbr_dist.data.device import to_device
from neuropbr_dist.data.load import load_batch
from neuropbr_dist.data.loader import batches_of, training_slots
from neuropbr_dist.data.open import (
    described,
    fill_cache,
    first_files,
    open_samples,
    open_source,
    split_entries,
)
from neuropbr_dist.data.order import SampleOrder, Slot
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.rendered import changes
from neuropbr_dist.data.rendered.changes import unchanged
from neuropbr_dist.data.rendered.materials import BuiltinMaterials
from neuropbr_dist.data.rendered.renderer import Renderer
from neuropbr_dist.data.rendered.source import RenderedSource
from neuropbr_dist.data.sources import BuiltinSource
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.plane import WRAP
from neuropbr_dist.materials.scene import builtin_scene, decode_scene, encode_scene
from tests.support.environments import room, write_hdr
from tests.support.material_files import random_normals, save, write_material

CPU = torch.device("cpu")
FINISH = [changes.ROUGHER, changes.RELIEF, changes.LEVEL, changes.CONTRAST, changes.OTHER_RELIEF]
SIDE = 16
NAMES = ("brick", "gold", "moss", "oak", "slate")
ALL = Augmentation(
    3, flips=True, rotations=True, crop=0.5, tint=0.3, roughness_shift=0.2, any_roughness=0.4, relief=0.5,
    other_relief=0.4, mixtures=0.5,
)  # fmt: skip
PLANE = Alignment(min_confidence=0.5, seed=3, ignore_wrap=0.5, drop_views=0.5, jitter=0.008)


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    """A folder of five materials, each of an albedo of its own; a sixth folder's dot hides it."""
    folder, rng = tmp_path_factory.mktemp("maps"), np.random.default_rng(0)
    for level, name in enumerate(NAMES):
        write_material(folder / name, SIDE, rng)
        save(np.full((SIDE, SIDE, 3), 40 * level + 20), folder / name / "albedo.png")
    (folder / ".done").mkdir()
    return folder


@pytest.fixture
def cfg(materials, tmp_path):
    made = TrainConfig()
    made.data.materials_dir, made.data.renders_per_epoch = str(materials), 3
    made.training.checkpoint_dir = str(tmp_path / "run")
    return made


@pytest.fixture
def samples(cfg):
    return open_samples(cfg)


# -- which samples there are -------------------------------------------------------------------


def test_an_epoch_shows_each_training_material_so_often(samples):
    seen = Counter(entry.material for entry in samples.train)
    assert set(seen.values()) == {3} and len(seen) == 4 and samples.align == "plane"
    assert [e.name for e in samples.train][:3] == [f"{samples.train[0].material}#{i:03d}" for i in range(3)]
    held = {entry.material for entry in samples.val}
    assert len(held) == 1 and held.isdisjoint(seen) and len(samples.val) == 3
    assert (
        samples.described
        == f"rendered online from 5 materials of {samples.data.materials_dir} × 3 repeats, clean"
    )


def test_curriculum_1_has_every_repeat_clean_and_dirty(cfg):
    cfg.data.render_curriculum = 1
    train = open_samples(cfg).train
    assert Counter(e.renders for e in train) == {"clean": 12, "dirty": 12}
    assert len({e.key for e in train}) == 24
    source = open_samples(cfg).source
    clean, dirty = source.scene(train[0], 5), source.scene(train[1], 5)
    np.testing.assert_array_equal(clean.cameras, dirty.cameras)
    assert not np.array_equal(clean.encoded, dirty.encoded)


def test_repeats_are_settled_once_and_saved(cfg):
    cfg.data.renders_per_epoch = None
    samples = open_samples(cfg)
    assert samples.data.renders_per_epoch == 1000 and len(samples.train) == 4000 and len(samples.val) == 64
    assert samples.data.render == "online"
    again = replace(cfg, data=samples.data)
    assert open_samples(from_yaml(to_yaml(again), "")).fingerprint == samples.fingerprint
    cfg.data.render_curriculum = 1
    assert open_samples(cfg).data.renders_per_epoch == 500


def test_files_and_a_packed_set_are_the_same(cfg, samples, materials, tmp_path):
    (materials / "split.json").write_text('{"validation": ["moss", "oak"]}')
    try:
        assert pack(None, materials, tmp_path / "packed", progress=False).clean
        files = open_samples(cfg)
        assert first_files(cfg.data) == [
            materials / "brick" / f"{name}.png" for name in ("albedo", "roughness", "metallic", "normal")
        ]
    finally:
        (materials / "split.json").unlink()
    cfg.data.materials_dir = str(tmp_path / "packed")
    packed = open_samples(cfg)
    assert {e.material for e in packed.val} == {"moss", "oak"}
    assert packed.fingerprint == files.fingerprint != samples.fingerprint
    for one, two in zip(files.source.entries, packed.source.entries, strict=True):
        np.testing.assert_array_equal(files.source.maps(one), packed.source.maps(two))
    by_data = open_samples(
        replace(cfg, data=DataConfig(packed_dir=str(tmp_path / "packed"), renders_per_epoch=3))
    )
    assert by_data.fingerprint == packed.fingerprint and by_data.data.render == "online"
    assert {path.parent for path in first_files(cfg.data)} == {tmp_path / "packed"}
    alone = open_source(packed.data, cfg.training.seed)
    train, val = split_entries(alone, packed.data, "plane", cfg.training.seed)
    assert list(train) == list(packed.train) and list(val) == list(packed.val)


def test_built_in_materials_are_made_without_views(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # a pool takes seconds to start
    cfg = TrainConfig()
    cfg.data = DataConfig(
        render="online", builtin=True, builtin_count=3, image_size=SIDE, builtin_cache=str(tmp_path / "cache"),
        renders_per_epoch=2,
    )  # fmt: skip
    samples = open_samples(cfg)
    fill_cache([samples.source])
    assert len(list((tmp_path / "cache").rglob("*_maps.npy"))) == 3
    assert not list((tmp_path / "cache").rglob("*_clean.npy"))
    assert samples.described == "rendered online from 3 built-in materials × 2 repeats, clean"
    assert described(BuiltinSource(cfg.data, 0), replace(cfg.data, render="stored")).startswith(
        "stored clean views"
    )


def test_all_faults_are_told_at_once(cfg, materials, tmp_path):
    folder, rng = tmp_path / "maps", np.random.default_rng(1)
    for name in ("a", "b", "c", "d"):
        write_material(folder / name, SIDE, rng)
    (folder / "b" / "metallic.png").unlink()
    (folder / "c" / "albedo.png").write_bytes(b"no picture")
    save(random_normals(8, rng), folder / "d" / "normal.png")
    cfg.data.materials_dir = str(folder)
    with pytest.raises(UserError) as error:
        open_samples(cfg)
    said = str(error.value)
    assert said.startswith(f"{folder}: the data set has faults, nothing was trained: 3 faults")
    for part in (
        "no metallic.png",
        "albedo.png: not a PNG file",
        "normal.png: 8 x 8, but",
        "set data.image_size",
    ):
        assert part in said
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_samples(replace(cfg, data=DataConfig(materials_dir="nowhere")))


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"input_dir": "i", "output_dir": "o", "tint": 0.1},
            "data.tint = 0.1 is about rendered views, but these are stored",
        ),
        ({"render": "stored", "relief": 0.5}, "data.relief = 0.5 is about rendered"),
        ({"materials_dir": "m", "input_dir": "i", "output_dir": "o"}, "name one or the other"),
        ({"materials_dir": "m", "packed_dir": "p"}, "name one or the other"),
        ({"materials_dir": "m", "render": "stored"}, "has no views; leave one out"),
        ({"materials_dir": "m", "split_by": "sample"}, "rendered views are split by material"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    cfg = TrainConfig()
    cfg.data = DataConfig(**fields)
    with pytest.raises(UserError, match=message):
        resolve(cfg)


def test_what_auto_comes_to_is_asked_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = TrainConfig()
    cfg.data.crop = 0.1
    resolve(cfg)  # a resumed run may have materials
    with pytest.raises(UserError, match=r"data.crop = 0.1 is about rendered views"):
        open_samples(cfg)


def test_a_flag_takes_the_place_of_other_data(tmp_path):
    saved = TrainConfig()
    saved.data = DataConfig(input_dir="i", output_dir="o", render="stored")
    Overrides(flags={"--materials": "m"}).apply(saved)
    assert (saved.data.input_dir, saved.data.materials_dir, saved.data.render) == (None, "m", "auto")
    saved.data.render = "online"
    Overrides(flags={"--data": "p"}).apply(saved)
    assert (saved.data.materials_dir, saved.data.packed_dir, saved.data.render) == (None, "p", "auto")


# -- what is drawn for each --------------------------------------------------------------------


def batch(samples, places, epoch=0, augmentation=ALL, alignment=PLANE):
    slots = [Slot(epoch, place, 1.0) for place in places]
    return load_batch(samples.source, samples.train, slots, augmentation, alignment)


def rows_of(host):
    """Each sample's tensors, by key."""
    parts = {"maps": host.maps, "cameras": host.cameras, **host.rendering._asdict()}
    return {
        key: {
            name: part[i]
            for name, part in parts.items()
            if isinstance(part, torch.Tensor) and name != "partners"
        }
        for i, key in enumerate(host.keys)
    }


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_a_sample_is_the_same_however_the_batch_is_cut(samples):
    whole = rows_of(batch(samples, range(8)))
    cut = rows_of(batch(samples, [5, 2, 7])) | rows_of(batch(samples, [0, 1, 3, 4, 6]))
    assert all(same(whole[key], cut[key]) for key in whole)
    scenes = [tuple(row["scenes"].flatten().tolist()) for row in whole.values()]
    assert len(set(scenes)) == 8  # repeats of a material, too
    later = rows_of(batch(samples, range(8), epoch=1))
    assert not any(same(whole[key], later[key]) for key in whole)
    assert all(torch.equal(whole[key]["maps"], later[key]["maps"]) for key in whole)


@pytest.mark.multiprocess
def test_a_sample_is_the_same_in_any_worker(samples):
    def loaded(workers, world):
        found = {}
        order = SampleOrder(len(samples.train), global_batch=4, epochs=1, seed=9)
        for rank in range(world):
            slots = training_slots(order, 0, world, rank, batch_size=2)
            with batches_of(
                DataConfig(num_workers=workers), samples.source, samples.train, slots, CPU,
                augmentation=ALL, alignment=PLANE,
            ) as hosts:  # fmt: skip
                for host in hosts:
                    assert host.views is None
                    found |= rows_of(host)
        return found

    reference = loaded(0, 1)
    assert len(reference) == 12
    for found in (loaded(2, 1), loaded(0, 3)):
        assert found.keys() == reference.keys() and all(same(found[key], reference[key]) for key in found)


def test_what_is_held_out_has_one_scene_and_stays_as_it_is(samples):
    def held(epoch):
        return load_batch(
            samples.source, samples.val, [Slot(epoch, 0, 1.0)], None, Alignment(min_confidence=0.5)
        )

    first, later = held(0), held(4)
    assert same(rows_of(first)[first.keys[0]], rows_of(later)[first.keys[0]])
    assert first.rendering.changes is None and first.rendering.partners is None
    assert torch.equal(first.cameras, first.rendering.cameras)
    np.testing.assert_array_equal(samples.source.cameras(samples.val[0]), first.cameras[0])
    seen = to_device(first._replace(cameras=None), 1, TransformConfig(), CPU).views
    views, _ = samples.source.load(samples.val[0])
    assert np.abs((seen[0].numpy() + 1) / 2 * 255 - views).max() < 0.51


def test_partners_are_of_the_training_side(samples):
    albedos, mixed, other_relief, count = set(), 0, 0, len(samples.train)
    for epoch in range(12):
        host = batch(samples, range(count), epoch)
        masked, relieved = (
            host.rendering.changes[:, changes.MASK.stop - 1] > 0,
            host.rendering.changes[:, changes.OTHER_RELIEF] > 0,
        )
        assert not (masked & relieved).any()
        there = masked | relieved
        mixed, other_relief = mixed + int(masked.sum()), other_relief + int(relieved.sum())
        assert host.rendering.partners is not None
        albedos |= set(host.rendering.partners[there][:, 0, 0, 0].tolist())
        assert not host.rendering.partners[~there].any()
    held = NAMES.index(samples.val[0].material)
    assert albedos == {40 * level + 20 for level in range(5) if level != held}
    assert 0.2 < other_relief / (12 * count) < 0.4  # two fifths of three quarters
    assert 0.25 < mixed / (12 * count) < 0.45  # half of the others
    neither = replace(ALL, mixtures=0, other_relief=0)
    assert batch(samples, range(4), augmentation=neither).rendering.partners is None


def test_on_the_bench_materials_keep_their_relief_and_roughness(samples):
    every = replace(ALL, any_roughness=1, other_relief=1)
    seen = Counter()
    for epoch in range(8):
        for index, entry in enumerate(samples.train):
            drawn = samples.source.draw(entry, epoch, every, len(samples.train))
            legacy = decode_scene(torch.from_numpy(drawn.scene.encoded)).legacy.bool()
            assert legacy.all() == legacy.any() == drawn.scene.on_bench
            own = drawn.changes[FINISH] == unchanged()[FINISH]
            assert own.all() if drawn.scene.on_bench else not own.any(), (epoch, index)
            seen[drawn.scene.on_bench] += 1
    assert 0.1 < seen[True] / seen.total() < 0.4


def test_a_part_does_not_repeat(samples):
    host = batch(samples, range(12), alignment=replace(PLANE, ignore_wrap=0, drop_views=0))
    part = host.rendering.changes[:, 6] < 1
    assert 0 < int(part.sum()) < 12 and host.rendering.parts
    assert torch.equal((host.cameras[:, :, WRAP] == 0).all(1), part)
    assert torch.equal((host.rendering.cameras[:, :, WRAP] == 0).all(1), part)


# -- what reaches the device -------------------------------------------------------------------


def test_views_on_the_device_do_not_depend_on_the_cut(samples):
    def on_device(hosts):
        made = [to_device(host, 8, TransformConfig(), CPU) for host in hosts]
        return torch.cat([each.views for each in made]), torch.cat([each.maps for each in made])

    views, maps = on_device([batch(samples, range(6))])
    assert views.shape == (6, 3, 7, SIDE, SIDE) and maps.shape == (6, 8, SIDE, SIDE)
    cut = on_device([batch(samples, [0, 1, 2, 3]), batch(samples, [4, 5])])
    assert torch.equal(maps, cut[1])
    torch.testing.assert_close(views, cut[0], rtol=0, atol=1e-6)  # rectified together
    assert torch.equal(views, on_device([batch(samples, range(6))])[0])
    torch.testing.assert_close(maps[:, 5:].norm(dim=1), torch.ones(6, SIDE, SIDE))
    bare = to_device(batch(samples, [0], alignment=None), 1, TransformConfig(), CPU)
    assert bare.views.shape == (1, 3, 3, SIDE, SIDE)


def test_filler_is_like_any_other_batch(samples):
    real = to_device(batch(samples, [0, 1]), 8, TransformConfig(), CPU)
    empty = to_device(filler(2, SIDE, cameras=True), 8, TransformConfig(), CPU)
    assert [x.shape for x in empty[:3]] == [x.shape for x in real[:3]] and not empty.weight.any()


def test_a_stored_view_and_a_rendered_one_of_the_same_scene_agree(tmp_path):
    """Within 2 levels of 255 on 99 of 100 pixels, after both went through the same rectification."""
    cache, side = BuiltinCache(tmp_path, 3, 32), 32
    source = BuiltinSource(DataConfig(builtin_count=2, image_size=side, builtin_cache=str(tmp_path)), 3)
    stored = load_batch(source, source.entries, [Slot(0, 1, 1.0)], alignment=Alignment(min_confidence=0.5))
    host = RenderedSource(BuiltinMaterials(cache, 2), 1, 0, seed=3)
    online = load_batch(host, host.entries, [Slot(0, 1, 1.0)], alignment=Alignment(min_confidence=0.5))
    scene = torch.from_numpy(encode_scene(builtin_scene(3, 1, dirty=False)))[None]
    online = online._replace(
        cameras=stored.cameras, rendering=online.rendering._replace(scenes=scene, cameras=stored.cameras)
    )
    one, two = (to_device(each, 1, TransformConfig(), CPU) for each in (stored, online))
    assert torch.equal(one.maps, two.maps) and torch.equal(one.views[:, :, 3:], two.views[:, :, 3:])
    off = (one.views - two.views)[:, :, :3].abs() / 2 * 255
    assert float((off <= 2).float().mean()) >= 0.99


def test_panoramas_light_half_of_the_samples(cfg, tmp_path):
    write_hdr(tmp_path / "room.hdr", room(), runs=True)
    cfg.data.environments_dir, cfg.data.renders_per_epoch = str(tmp_path), 10
    samples = open_samples(cfg)
    assert samples.described.endswith(f"clean, lit by {tmp_path}")
    host = batch(samples, range(20))
    lit = decode_scene(host.rendering.scenes).environment[..., 3] > 0
    assert 3 <= int(lit.any(1).sum()) <= 17
    with_them, without = samples.renderer(CPU), Renderer(samples.source.environments * 0)
    one, two = (
        to_device(host, 20, TransformConfig(), CPU, renderer=each).views for each in (with_them, without)
    )
    assert torch.equal((one != two).flatten(1).any(1), lit.any(1))
    cfg.data.environments_dir = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_samples(cfg)
