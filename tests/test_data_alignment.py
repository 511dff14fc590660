"""Cameras on their way to the device: from every source alike, changed by keys alone, and what is left out."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from neuropbr_dist.config import DataConfig, TrainConfig, TransformConfig, with_fields
from neuropbr_dist.data.alignment import EXACT, WRAP_IGNORED, Alignment, known, shift
from neuropbr_dist.data.augment import Augmentation, turn_maps, turn_views
from neuropbr_dist.data.builtin import generate
from neuropbr_dist.data.builtin.cache import sample_cameras
from neuropbr_dist.data.cameras import NOT_KNOWN, SampleCameras, write_cameras
from neuropbr_dist.data.device import shown, to_device
from neuropbr_dist.data.load import load_batch
from neuropbr_dist.data.loader import batches_of
from neuropbr_dist.data.open import open_samples, open_source, split_entries
from neuropbr_dist.data.order import Slot
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.packed.source import PackedSet
from neuropbr_dist.data.rendered.changes import mask_of
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.plane import MATRIX, WRAP, PlaneCamera, project
from neuropbr_dist.training.facts import describe_samples
from tests.support.material_files import write_cameras_of, write_set

CPU = torch.device("cpu")
SIDE = 16
TRUE = sample_cameras(0, 0).encoded("clean")
TRAINING = Alignment(min_confidence=0.5, seed=1, ignore_wrap=WRAP_IGNORED, drop_views=0.4, jitter=0.008)


def draws(alignment: Alignment, cameras=TRUE, count: int = 400) -> np.ndarray:
    """The cameras of many samples of an epoch: (n, 3, 14)."""
    return np.stack([alignment.of(cameras, 2, f"clean/sample_{i:04d}") for i in range(count)])


# -- keyed changes -----------------------------------------------------------------------------


def test_the_same_key_gives_the_same_cameras():
    assert np.array_equal(draws(TRAINING), draws(TRAINING))
    others = [
        TRAINING.of(TRUE, 3, "clean/sample_0000"),
        replace(TRAINING, seed=2).of(TRUE, 2, "clean/sample_0000"),
    ]
    assert not any(np.array_equal(other, draws(TRAINING, count=1)[0]) for other in others)


def test_shares_are_as_asked_for():
    found = draws(TRAINING)
    there = known(found, 0)
    missing = np.bincount((~there).sum(1), minlength=3) / len(there)
    assert len(missing) == 3 and missing[1:] == pytest.approx([0.2, 0.2], abs=0.05)
    for left in (1, 2):  # whichever view it is
        lost = (~there[there.sum(1) == left]).sum(0)
        assert lost.min() > 0.2 * lost.sum()
    whole = found[there.all(1)]
    assert 0.4 < whole[:, 0, WRAP].mean() < 0.6
    assert (whole[:, :, WRAP] == whole[:, :1, WRAP]).all(), "a plane repeats for all views or for none"


def test_jitter_shifts_each_view_on_its_own_within_its_bound():
    middle = np.array([0.1, -0.2])
    before = np.stack([project(c[MATRIX].reshape(3, 3).astype(float), middle) for c in TRUE])
    found = draws(replace(TRAINING, drop_views=0.0))
    after = np.stack([[project(c[MATRIX].reshape(3, 3).astype(float), middle) for c in row] for row in found])
    moved = np.linalg.norm(after - before, axis=-1)
    assert moved.max() <= 0.008 + 1e-6 and moved.max() > 0.007
    assert abs(np.median(moved) - 0.008 / 2**0.5) < 0.0006, "as often in each part of the disc"
    assert np.corrcoef(moved.T)[0, 1] < 0.2


def test_a_share_of_the_samples_is_not_shifted():
    found = draws(replace(TRAINING, drop_views=0.0, exact=0.5))
    same = (found[..., MATRIX] == TRUE[..., MATRIX]).all(-1)
    assert (same == same[:, :1]).all(), "all views of a sample or none"
    assert 0.4 < same[:, 0].mean() < 0.6
    plane = with_fields(TrainConfig(), model={"align": "plane"})
    assert [Alignment.of_run(plane, training=training).exact for training in (True, False)] == [EXACT, 0]


def test_a_shifted_camera_sees_everything_further_along():
    camera = TRUE[0].copy()
    before = project(camera[MATRIX].reshape(3, 3).astype(float), np.array([[0.0, 0.0], [0.3, -0.4]]))
    shift(camera, 0.25, -0.125)
    after = project(camera[MATRIX].reshape(3, 3).astype(float), np.array([[0.0, 0.0], [0.3, -0.4]]))
    np.testing.assert_allclose(after - before, [[0.25, -0.125]] * 2, atol=1e-6)


def test_a_last_view_is_never_lost():
    alone = TRUE.copy()
    alone[1:] = 0
    found = draws(replace(TRAINING, drop_views=1.0), alone, 50)
    assert known(found, 0).sum(1).tolist() == [1] * 50
    two = TRUE.copy()
    two[1] = 0
    assert known(draws(replace(TRAINING, drop_views=1.0), two, 50), 0).sum(1).tolist() == [1] * 50


def test_a_network_of_fewer_views_is_shown_the_first_that_there_are():
    plane = with_fields(TrainConfig(), model={"align": "plane"}, data={"views": 1})
    gap = TRUE.copy()
    gap[0] = 0
    for training in (False, True):
        alignment = Alignment.of_run(plane, training=training)
        for cameras, first in ((TRUE, 0), (gap, 1)):
            assert np.flatnonzero(known(alignment.of(cameras, 0, "a"), 0)).tolist() == [first]
    two = replace(Alignment.of_run(plane, training=False), views=2).of(TRUE, 0, "a")
    assert np.array_equal(two[:2], TRUE[:2]) and not two[2].any()


def test_nothing_is_changed_in_validation_but_what_is_doubtful():
    doubtful = TRUE.copy()
    doubtful[2, 12] = 0.4
    plane = TrainConfig()
    assert Alignment.of_run(plane, training=True) is None
    plane.model.align, plane.data.drop_views, plane.data.camera_jitter = "plane", 1.0, 0.008
    found = Alignment.of_run(plane, training=False).of(doubtful, 0, "clean/sample_0000")
    assert np.array_equal(found[:2], TRUE[:2]) and not found[2].any()
    assert np.array_equal(Alignment(min_confidence=0.4).of(doubtful, 0, ""), doubtful)
    assert not Alignment(min_confidence=0).of(NOT_KNOWN, 0, "").any()


# -- sources -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Built-in samples as files and packed: input, output, packed."""
    root = tmp_path_factory.mktemp("set")
    generate(root / "files", count=4, size=SIDE, seed=3, workers=0, progress=False)
    folders = root / "files" / "input", root / "files" / "output"
    assert pack(*folders, root / "packed", progress=False).clean
    return root


def config(folder, kind: str, **fields) -> DataConfig:
    named = {
        "files": {"input_dir": str(folder / "files" / "input"), "output_dir": str(folder / "files" / "output")},
        "packed": {"packed_dir": str(folder / "packed")},
        "built in": {"builtin": True, "builtin_count": 4, "builtin_cache": str(folder / "cache")},
    }  # fmt: skip
    return DataConfig(render_curriculum=1, num_workers=0, image_size=SIDE, **named[kind], **fields)


def test_all_sources_give_the_same_cameras(folder):
    """From files and a packed set to the bit; built-in ones before they are rounded for the file."""
    batches = []
    for kind in ("files", "packed", "built in"):
        source = open_source(config(folder, kind), seed=3)
        slots = [Slot(1, i, 1.0) for i in range(len(source.entries))]
        batches.append(load_batch(source, source.entries, slots, alignment=TRAINING))
    files, packed, made = batches
    assert files.keys == packed.keys == made.keys and len(files.keys) == 8
    assert torch.equal(files.cameras, packed.cameras)
    torch.testing.assert_close(files.cameras, made.cameras, atol=1e-6, rtol=0)
    assert files.cameras.shape == (8, 3, 14) and files.cameras.dtype == torch.float32
    seen = [to_device(batch, 8, TransformConfig(), CPU).views for batch in batches]
    assert torch.equal(seen[0], seen[1]) and seen[0].shape == (8, 3, 7, SIDE, SIDE)


def test_cameras_that_come_later_reach_a_packed_set(folder, tmp_path):
    renders, maps = write_set(tmp_path)
    pack(renders, maps, tmp_path / "packed", progress=False)
    assert PackedSet(tmp_path / "packed").column("cameras") is None
    write_cameras_of(renders, ["sample_0000", "sample_0002"])
    assert pack(renders, maps, tmp_path / "packed", progress=False).clean
    source = open_source(DataConfig(packed_dir=str(tmp_path / "packed")), 0)
    assert [bool(source.cameras(entry).any()) for entry in source.entries] == [True, False, True]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_of_loading_does_not_matter(folder, workers):
    source = open_source(config(folder, "files"), seed=3)
    slots = [Slot(epoch, i, 1.0) for epoch in range(2) for i in range(8)]
    found = []
    for size in (4, 2):
        cut = [slots[i : i + size] for i in range(0, len(slots), size)]
        data = config(folder, "files")
        with batches_of(data, source, source.entries, cut, CPU, workers, alignment=TRAINING) as batches:
            found.append(torch.cat([batch.cameras for batch in batches]))
    assert torch.equal(*found)


@pytest.mark.parametrize("orientation", range(8))
def test_turned_on_the_device_as_the_rectified_would_be(folder, orientation):
    source = open_source(config(folder, "files"), seed=3)
    plain = load_batch(source, source.entries[:2], [Slot(0, i, 1.0) for i in range(2)], alignment=TRAINING)
    turned = plain._replace(orientations=[orientation, orientation])
    before, after = (to_device(batch, 2, TransformConfig(), CPU, torch.float64) for batch in (plain, turned))
    expected = turn_views(before.views[:, :, :4], orientation)
    torch.testing.assert_close(after.views[:, :, :4], expected, atol=2e-4, rtol=0)
    # Directions turn as the maps' normals do.
    bytes_of = ((before.views[0, 0, 4:] + 1) * 127.5).round().to(torch.uint8)
    normals = torch.cat([torch.zeros(5, SIDE, SIDE, dtype=torch.uint8), bytes_of])
    as_normals = turn_maps(normals, orientation)[5:].double() / 127.5 - 1
    mask = after.views[0, 0, 3] > 0
    assert ((after.views[0, 0, 4:] - as_normals).abs() * mask).max() < 0.01


def test_a_mixture_shows_at_each_place_one_of_two_samples(folder):
    """Each as it is shown by itself, rectified by its own cameras; whatever the micro-batch."""
    source = open_source(config(folder, "files"), seed=3)
    slots = [Slot(epoch, i, 1.0) for epoch in range(3) for i in range(8)]
    mixing = Augmentation(3, flips=True, rotations=True, mixtures=0.5)

    def load(slots, mixtures):
        made = load_batch(source, source.entries, slots, replace(mixing, mixtures=mixtures), TRAINING)
        return made, to_device(made, 24, TransformConfig(), CPU)

    (made, found), (_, plain) = load(slots, 0.5), load(slots, 0.0)
    at, partners = made.mixture.at.tolist(), made.mixture.partners.keys
    assert 6 < len(at) < 18 and len(set(partners)) > 2
    theirs = mask_of(made.mixture.masks, SIDE)[:, 0] > 0.5
    assert 0.3 < float(theirs.double().mean()) < 0.7
    for place, partner, there in zip(at, partners, theirs, strict=True):
        other = slots[place].epoch * 8 + made.keys[:8].index(partner)
        for mixed, own, of_other in zip(found[:2], plain[:2], plain[:2], strict=True):
            assert torch.equal(mixed[place], torch.where(there, of_other[other], own[place]))
    alone = [place for place in range(24) if place not in at]
    assert all(torch.equal(a[alone], b[alone]) for a, b in zip(found[:2], plain[:2], strict=True))
    cut = [load(slots[i : i + 6], 0.5)[1] for i in range(0, 24, 6)]
    assert torch.equal(torch.cat([part.views for part in cut]), found.views)
    assert torch.equal(torch.cat([part.maps for part in cut]), found.maps)


def test_pictures_for_a_person(folder):
    transform = TransformConfig(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    source = open_source(config(folder, "files"), seed=3)
    slots = [Slot(0, 0, 1.0)]
    plain = load_batch(source, source.entries[:1], slots)
    assert torch.equal(shown(to_device(plain, 1, transform, CPU).views, transform), plain.views)
    aligned = load_batch(source, source.entries[:1], slots, alignment=replace(TRAINING, drop_views=1.0))
    on_device = to_device(aligned, 1, transform, CPU).views
    seen = shown(on_device, transform)
    missing = ~aligned.cameras.any(-1)[0]
    assert 0 < missing.sum() < 3 and not seen[0, missing].any() and seen[0, ~missing].any()


# -- what a set comes to -----------------------------------------------------------------------


def some_set(tmp_path, with_cameras: int, samples: int = 20):
    names = {f"sample_{i:04d}": f"material_{i}" for i in range(samples)}
    renders, maps = write_set(tmp_path, names)
    if with_cameras:
        write_cameras_of(renders, list(names)[:with_cameras])
    cfg = TrainConfig()
    cfg.data = DataConfig(input_dir=str(renders), output_dir=str(maps))
    cfg.training.checkpoint_dir = str(tmp_path / "run")
    return cfg


@pytest.mark.parametrize(("count", "align"), [(20, "plane"), (18, "plane"), (17, "none"), (0, "none")])
def test_auto_is_plane_from_nine_of_ten_on(tmp_path, count, align, caplog):
    cfg = some_set(tmp_path, count)
    samples = open_samples(cfg)
    assert samples.align == align and samples.cameras == (count, 20)
    kept = count if align == "plane" else 20
    assert len(samples.train) + len(samples.val) == kept and len(samples.val) == 2
    with caplog.at_level(logging.INFO):
        describe_samples(cfg, samples)
    said = [line for line in caplog.messages if "amera" in line]
    expected = {20: ["rectified by their cameras"], 18: ["2 of 20 samples have none"], 17: ["17 of 20 samples have cameras"], 0: []}  # fmt: skip
    assert len(said) == len(expected[count])
    assert all(text in line for text, line in zip(expected[count], said, strict=True))


def test_who_is_left_out_is_left_out_before_the_split(tmp_path):
    cfg = some_set(tmp_path, 9)
    cfg.model.align = "plane"
    samples = open_samples(cfg)
    names = sorted(entry.name for entry in [*samples.train, *samples.val])
    assert names == [f"sample_{i:04d}" for i in range(9)] and len(samples.val) == 1
    source = open_source(samples.data, 0)
    again = split_entries(source, samples.data, "plane", cfg.training.seed)
    assert [[e.key for e in side] for side in again] == [
        [e.key for e in side] for side in (samples.train, samples.val)
    ]
    assert open_samples(replace(cfg, model=replace(cfg.model, align="none"))).cameras == (9, 20)


def test_confidence_decides_who_counts(tmp_path):
    cfg = some_set(tmp_path, 0, samples=4)
    camera = PlaneCamera(np.array([[1.0, 0, 0.5], [0, -1.0, 0.5], [0, 0, 1.0]]), None, 0.6)
    renders = tmp_path / "input"
    write_cameras(renders / "cameras.json", {f"sample_{i:04d}": SampleCameras({"clean": (camera,) * 3}) for i in range(4)})  # fmt: skip
    assert open_samples(cfg).align == "plane"
    cfg.data.min_confidence = 0.7
    assert open_samples(cfg).align == "none"
    cfg.model.align = "plane"
    with pytest.raises(
        UserError, match=r"none of 4 samples has a view with one of data.min_confidence = 0.7"
    ):
        open_samples(cfg)


def test_plane_without_cameras_is_refused(tmp_path):
    cfg = some_set(tmp_path, 0)
    cfg.model.align = "plane"
    with pytest.raises(UserError, match=r"model.align = plane needs cameras, but none of 20 samples"):
        open_samples(cfg)


def test_faults_of_the_camera_file_are_faults_of_the_set(tmp_path):
    cfg = some_set(tmp_path, 3)
    path = tmp_path / "input" / "cameras.json"
    content = json.loads(path.read_text())
    content["samples"]["sample_0001"]["clean"] = [None, None]
    content["samples"]["sample_0002"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        open_samples(cfg)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 faults in the data set:" and "sample_0001: clean: 2;" in lines[1]
    assert "sample_0002: {}; allowed: " in lines[2]
    verification = pack(tmp_path / "input", tmp_path / "output", tmp_path / "packed", progress=False)
    assert not verification.clean and {"sample_0001", "sample_0002"} <= set(verification.faulty_samples)
    assert not (tmp_path / "packed" / "packed.json").exists()
    path.write_text("{")
    with pytest.raises(UserError, match=r"cameras\.json: not JSON"):
        open_samples(cfg)


def test_a_camera_file_that_knows_more_samples_is_no_fault(tmp_path, caplog):
    """Samples were deleted, or renamed: theirs count as not known, and a line names them."""
    cfg = some_set(tmp_path, 3)
    path = tmp_path / "input" / "cameras.json"
    content = json.loads(path.read_text())
    content["samples"] = {f"old_{name}": sample for name, sample in content["samples"].items()}
    path.write_text(json.dumps(content))
    caplog.set_level(logging.INFO, "neuropbr_dist")
    found = open_samples(cfg)
    assert found.align == "none" and found.cameras[0] == 0
    assert "3 entries of cameras.json have no sample folder: old_sample_0000, " in caplog.text
