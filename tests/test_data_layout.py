"""Layout index, header check and split."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from neuropbr_dist.data.files.entries import Sample
from neuropbr_dist.data.files.headers import check_headers, roles_of
from neuropbr_dist.data.files.layout import scan
from neuropbr_dist.data.split import split
from neuropbr_dist.errors import UserError
from tests.support.material_files import png, write_set, write_views
from tests.support.said import said


def drop(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def rewrite(path, metadata):
    path.write_text(metadata if isinstance(metadata, str) else json.dumps(metadata))


# --- scan


def test_curricula_queue_what_is_on_disk(tmp_path):
    inputs, outputs = write_set(tmp_path, {"b": "wood", "a": "wood", "c": "tin"}, renders=("clean", "dirty"))
    drop(inputs / "dirty/a")
    drop(inputs / "clean/c")

    def keys(curriculum):
        return [sample.key for sample in scan(inputs, outputs, None, curriculum)]

    assert keys(0) == ["clean/a", "clean/b"]
    assert keys(1) == ["clean/a", "clean/b", "dirty/b", "dirty/c"]
    assert keys(2) == ["dirty/b", "dirty/c"]


def test_paths_and_order_of_files(tmp_path):
    inputs, outputs = write_set(tmp_path, {"s": "wood"})
    (sample,) = scan(str(inputs), str(outputs))
    assert sample.views == tuple(inputs / "clean/s" / f"{i}.png" for i in range(3))
    assert [path.name for path in sample.maps] == [
        "albedo.png",
        "roughness.png",
        "metallic.png",
        "normal.png",
    ]
    assert sample.maps[0].parent == outputs / "wood"


def test_metadata_elsewhere(tmp_path):
    inputs, outputs = write_set(tmp_path, {"s": "wood"})
    moved = (inputs / "render_metadata.json").rename(tmp_path / "other.json")
    assert len(scan(inputs, outputs, moved)) == 1
    with pytest.raises(UserError, match=r"render_metadata\.json: missing.*data\.metadata_path"):
        scan(inputs, outputs)


def test_partial_render_sets_are_only_noted(tmp_path):
    inputs, outputs = write_set(tmp_path, {"a": "wood", "b": "tin"})
    rewrite(inputs / "render_metadata.json", {"a": "wood", "b": "wood", "unrendered": "absent"})
    (inputs / "clean/.cache").mkdir()
    (inputs / "clean/readme.txt").write_text("not a sample")
    with said() as notes:
        assert [sample.name for sample in scan(inputs, outputs)] == ["a", "b"]
    assert notes == [
        "1 metadata entries have no sample folder: unrendered",
        "1 material folders are not in the metadata: tin",
    ]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda i, o: drop(i), r"input: no such folder \(data\.input_dir\)"),
        (lambda i, o: drop(o), r"output: no such folder \(data\.output_dir\)"),
        (lambda i, o: drop(i / "clean/a/1.png"), r"clean/a: no 1\.png$"),
        (lambda i, o: (i / "clean/a/3.png").touch(), r"clean/a: more than three views: 3\.png beside"),
        (lambda i, o: drop(o / "wood"), r"output/wood: no such material folder \(for a\)"),
        (lambda i, o: drop(o / "wood/metallic.png"), r"output/wood: no metallic\.png \(for a\)"),
        (lambda i, o: drop(o / "wood/albedo.png"), r"output/wood: no albedo\.png \(for a\)"),
        (lambda i, o: rewrite(i / "render_metadata.json", {"b": "tin"}), r"clean/a: not in the metadata"),
    ],
)
def test_each_fault_is_named(tmp_path, break_it, message):
    inputs, outputs = write_set(tmp_path, {"a": "wood", "b": "tin"})
    break_it(inputs, outputs)
    with pytest.raises(UserError, match=message):
        scan(inputs, outputs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n "a": "wood",\n}', "not JSON at line 3, column 1"),
        ('["a"]', "holds a JSON list"),
        ('{"a": 3}', "'a' maps to 3"),
        ('{"a": {"material": "wood"}}', "'a' maps to {"),
        ('{"a": ""}', "'a' maps to ''"),
        ('{"a": "wood", "a": "tin"}', "'a' appears more than once"),
    ],
)
def test_malformed_metadata(tmp_path, text, message):
    inputs, outputs = write_set(tmp_path, {"a": "wood"})
    rewrite(inputs / "render_metadata.json", text)
    with pytest.raises(UserError, match=message):
        scan(inputs, outputs)


def test_many_faults_are_counted_and_cut(tmp_path):
    inputs, outputs = write_set(tmp_path, {f"s{i:02}": "wood" for i in range(14)}, size=1)
    for i in range(14):
        drop(inputs / f"clean/s{i:02}/0.png")
    with pytest.raises(UserError) as error:
        scan(inputs, outputs)
    lines = str(error.value).splitlines()
    assert lines[0] == "14 faults in the data set:"
    assert len(lines) == 12
    assert lines[-1].strip() == "and 4 more"


def test_empty_curriculum_names_the_others(tmp_path):
    inputs, outputs = write_set(tmp_path, {"a": "wood", "b": "tin"})
    with pytest.raises(UserError, match=r"curriculum = 2 .*curriculum 0 would have 2, 1 would have 2"):
        scan(inputs, outputs, None, 2)


# --- headers


def test_headers_of_a_good_set(tmp_path):
    samples = scan(*write_set(tmp_path, size=8))
    assert check_headers(roles_of(samples), None) == ([], 8)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("input/clean/a/0.png", b"", "empty"),
        ("input/clean/a/0.png", b"\xff\xd8\xff\xe0 a JPEG" * 10, "not a PNG file"),
        ("input/clean/a/1.png", png(np.zeros((8, 4, 3), int), 2, 8), "4 x 8; pictures must be square"),
        ("input/clean/a/1.png", png(np.zeros((4, 4, 3), int), 2, 8), "4 x 4, but .*0.png is 8 wide"),
        ("output/wood/normal.png", png(np.zeros((8, 8, 1), int), 0, 8), "a normal map has X, Y and Z"),
        ("input/clean/a/2.png", png(np.zeros((8, 8, 2), int), 4, 16), "16-bit gray with alpha"),
        ("output/wood/albedo.png", png(np.zeros((8, 8, 3), int), 2, 8)[:-1], "truncated"),
        ("output/wood/albedo.png", png(np.zeros((8, 8, 3), int), 2, 8)[:40], "truncated"),
        ("output/wood/albedo.png", png(np.zeros((8, 8, 3), int), 2, 8) + b"\0", "bytes after its end"),
        ("output/wood/albedo.png", png(np.zeros((8, 8, 3), int), 2, 4), "colour type 2 with 4 bits"),
    ],
)
def test_each_header_fault_is_named(tmp_path, file, content, message):
    samples = scan(*write_set(tmp_path, {"a": "wood"}, size=8))
    (tmp_path / file).write_bytes(content)
    faults, _ = check_headers(roles_of(samples), None)
    assert len(faults) == 1
    with pytest.raises(UserError, match=f"{file}: .*{message}"):
        raise UserError(faults[0])


def test_damaged_header_is_a_fault(tmp_path):
    samples = scan(*write_set(tmp_path, {"a": "wood"}))
    data = bytearray(samples[0].views[0].read_bytes())
    data[19] ^= 1  # a bit of the width
    samples[0].views[0].write_bytes(data)
    assert check_headers(roles_of(samples), None) == (
        [f"{samples[0].views[0]}: damaged (its header can't be read)"],
        None,
    )


def test_sizes_may_differ_when_pictures_are_resized(tmp_path):
    inputs, outputs = write_set(tmp_path, {"a": "wood", "b": "tin"}, size=8)
    drop(inputs / "clean/b")
    write_views(inputs / "clean/b", 12, np.random.default_rng(1))
    samples = scan(inputs, outputs)
    assert len(check_headers(roles_of(samples), None).faults) == 3
    assert check_headers(roles_of(samples), 16).faults == []


def test_every_file_is_in_one_rank_s_share(tmp_path):
    samples = scan(*write_set(tmp_path, renders=("clean", "dirty")), None, 1)
    for sample in samples:
        for path in (*sample.views, *sample.maps):
            path.write_bytes(b"not a picture")
    every = [
        fault
        for rank in range(3)
        for fault in check_headers(roles_of(samples), None, rank=rank, world_size=3).faults
    ]
    assert sorted(every) == sorted(check_headers(roles_of(samples), None).faults)
    assert len(every) == 6 * 3 + 2 * 4


def test_header_cache_knows_good_files_until_they_change(tmp_path, caplog):
    samples = scan(*write_set(tmp_path, size=8))
    cache, view = tmp_path / "headers.json", samples[0].views[1]
    assert check_headers(roles_of(samples), None, cache=cache).faults == []

    # The same length and time: only the cache can call this file good.
    status = view.stat()
    view.write_bytes(b"x" * status.st_size)
    os.utime(view, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert check_headers(roles_of(samples), None, cache=cache) == ([], 8)

    os.utime(view, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    for _ in range(2):  # a fault is never taken from the cache
        assert check_headers(roles_of(samples), None, cache=cache).faults == [f"{view}: not a PNG file"]
    assert [path.name for path in tmp_path.glob("headers*")] == ["headers.json"]

    cache.write_text("{")  # a crash has damaged it: all are read again, and it is whole afterwards
    assert check_headers(roles_of(samples), None, cache=cache).faults == [f"{view}: not a PNG file"]
    assert "headers.json: not a cache of picture headers; all are read again" in caplog.text
    assert len(json.loads(cache.read_text())) == len(roles_of(samples)) - 1


def test_header_cache_obeys_the_rules_again(tmp_path):
    inputs, outputs = write_set(tmp_path, {"a": "wood"}, size=8)
    Image.new("RGB", (4, 4)).save(inputs / "clean/a/2.png")
    samples, cache = scan(inputs, outputs), tmp_path / "headers.json"
    assert check_headers(roles_of(samples), 8, cache=cache).faults == []
    assert len(check_headers(roles_of(samples), None, cache=cache).faults) == 1


# --- split


def entries(n_materials, per_material=3):
    """Clean and dirty entries; the files are never opened."""
    return [
        Sample(f"s{m:03}_{i}", source, f"m{m:03}", (), ())
        for m in range(n_materials)
        for i in range(per_material)
        for source in ("clean", "dirty")
    ]


@pytest.mark.parametrize("split_by", ["material", "sample"])
@pytest.mark.parametrize(("n", "ratio"), [(2, 0.1), (7, 0.1), (10, 0.25), (40, 0.1), (40, 0.49)])
def test_share_and_separation(n, ratio, split_by):
    samples = entries(n)
    train, val = split(samples, ratio, split_by, seed=42)

    def units(part):
        return {sample.material if split_by == "material" else sample.name for sample in part}

    units_in_all = n if split_by == "material" else 3 * n
    assert len(units(val)) == max(1, round(ratio * units_in_all))
    assert units(train) | units(val) == units(samples)
    assert not units(train) & units(val)
    assert not {sample.name for sample in train} & {sample.name for sample in val}
    assert Counter(sample.key for sample in [*train, *val]) == Counter(sample.key for sample in samples)


def test_split_depends_on_names_and_seed_only():
    samples = entries(30)
    _, val = split(samples, 0.2, "material", 1)
    shuffled = random.Random(0).sample(samples, len(samples))
    _, again = split(shuffled, 0.2, "material", 1)
    assert {sample.key for sample in again} == {sample.key for sample in val}
    # The clean entries alone are split as the whole set is: a curriculum leaks nothing.
    _, clean = split([sample for sample in samples if sample.renders == "clean"], 0.2, "material", 1)
    assert {sample.name for sample in clean} == {sample.name for sample in val}
    _, other = split(samples, 0.2, "material", 2)
    assert {sample.key for sample in other} != {sample.key for sample in val}


def test_the_split_never_changes():
    """A resumed run must not train on what it validated on before."""
    _, val = split(entries(20, per_material=1), 0.2, "material", seed=42)
    assert sorted({sample.material for sample in val}) == ["m004", "m008", "m015", "m017"]


def test_impossible_splits_name_the_field():
    with pytest.raises(UserError, match=r"data\.split_by = material: the set has 1 material;"):
        split(entries(1), 0.1, "material", 0)
    with pytest.raises(UserError, match=r"data\.split_by = sample: the set has 1 sample;"):
        split(entries(1, per_material=1), 0.1, "sample", 0)
    with pytest.raises(UserError, match=r"data\.val_ratio = 0\.9 holds out 4 of 4 materials"):
        split(entries(4), 0.9, "material", 0)


# --- what a machine or a stranger makes of a set


def test_folders_that_can_not_be_read_are_faults(tmp_path, monkeypatch):
    inputs, outputs = write_set(tmp_path, {"a": "wood", "b": "tin"})
    plain = os.listdir

    def listdir(path):
        if str(path).endswith(("clean/a", "output/tin")):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(UserError) as caught:
        scan(inputs, outputs)
    assert "clean/a: can't be read: Permission denied" in str(caught.value)
    assert "output/tin: can't be read: Permission denied" in str(caught.value)


@pytest.mark.parametrize("folder", ["input/clean", "output"])
def test_names_that_are_not_utf_8_are_told(tmp_path, folder):
    inputs, outputs = write_set(tmp_path, {"a": "wood"})
    os.mkdir(os.fsencode(tmp_path / folder) + b"/Geh\xe4use")
    with pytest.raises(UserError, match=r"1 folder names are not UTF-8 \('Geh\\udce4use'\); rename them"):
        scan(inputs, outputs)


@pytest.mark.parametrize("material", ["../wood", "..", "/etc", "a\0b"])
def test_a_material_is_one_folder(tmp_path, material):
    inputs, outputs = write_set(tmp_path, {"a": "wood"})
    rewrite(inputs / "render_metadata.json", {"a": material})
    with pytest.raises(UserError, match="a material folder's name is needed"):
        scan(inputs, outputs)
