"""The full check of a data set finds each planted fault, and nothing else."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from neuropbr_dist.data.files.picture_check import inspect_picture
from neuropbr_dist.data.files.verify import verify
from neuropbr_dist.errors import UserError
from tests.support.material_files import random_normals, save, write_material, write_set, write_views

SIZE = 16
METADATA = {"a": "wood", "b": "steel", "c": "wood"}


@pytest.fixture
def folders(tmp_path):
    return write_set(tmp_path, METADATA, renders=("clean", "dirty"), size=SIZE)


def check(folders, **options):
    return verify(*folders, progress=False, **options)


def test_a_good_set_is_clean(folders, tmp_path):
    verification = check(folders, fix_list=tmp_path / "fix.txt")
    assert verification.clean and verification.notes == []
    assert (verification.samples, verification.files) == (6, 6 * 3 + 2 * 4)
    assert str(verification) == "6 sample entries, 26 pictures: clean"
    assert (tmp_path / "fix.txt").read_text() == ""


@pytest.mark.parametrize("option", ["fix_list", "resume"])
@pytest.mark.parametrize("path", [".", "none/file"])
def test_a_file_that_cannot_be_written_is_named_before_the_work(folders, tmp_path, monkeypatch, option, path):
    monkeypatch.setattr("neuropbr_dist.data.files.verify.in_parallel", None)
    with pytest.raises(UserError, match=f"^{tmp_path / path}: (is a folder|can't be written)"):
        check(folders, **{option: tmp_path / path})


def overwrite_view(inputs, outputs):
    save(np.zeros((8, 8, 3)), inputs / "dirty/b/1.png")


def truncate(inputs, outputs):
    view = inputs / "clean/c/0.png"
    view.write_bytes(view.read_bytes()[:-200])


def damage(inputs, outputs):
    data = bytearray((outputs / "steel/metallic.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (outputs / "steel/metallic.png").write_bytes(data)


def swap_maps(inputs, outputs):
    shutil.copy(outputs / "steel/albedo.png", outputs / "steel/normal.png")


def normals_as_albedo(inputs, outputs):
    save(random_normals(SIZE, np.random.default_rng(5)), outputs / "wood/albedo.png")


def shorten_normals(inputs, outputs):
    normals = random_normals(SIZE, np.random.default_rng(5))
    normals[:4] = (128, 128, 200)
    save(normals, outputs / "steel/normal.png")


def gray_normals(inputs, outputs):
    save(np.full((SIZE, SIZE), 200), outputs / "steel/normal.png")


def colour_roughness(inputs, outputs):
    shutil.copy(outputs / "steel/albedo.png", outputs / "steel/roughness.png")


def repeat_view(inputs, outputs):
    shutil.copy(inputs / "clean/a/0.png", inputs / "clean/a/2.png")


def copy_material(inputs, outputs):
    shutil.rmtree(outputs / "wood")
    shutil.copytree(outputs / "steel", outputs / "wood")


def copy_most_of_a_material(inputs, outputs):
    copy_material(inputs, outputs)
    save(np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 256, outputs / "wood/roughness.png")


def drop_view(inputs, outputs):
    (inputs / "clean/a/2.png").unlink()


def drop_map(inputs, outputs):
    (outputs / "steel/roughness.png").unlink()


def drop_material(inputs, outputs):
    shutil.rmtree(outputs / "steel")


def add_unlisted_sample(inputs, outputs):
    write_views(inputs / "clean/d", SIZE, np.random.default_rng(9))


@pytest.mark.parametrize(
    ("plant", "message", "samples"),
    [
        (overwrite_view, "dirty/b/1.png: 8 px, but 25 of 26 pictures are 16 px", "b"),
        (truncate, "clean/c/0.png: truncated", "c"),
        (damage, "steel/metallic.png: damaged", "b"),
        (swap_maps, "steel/normal.png: looks swapped: averages", "b"),
        (normals_as_albedo, "wood/albedo.png: looks swapped: an albedo map that holds unit normals", "ac"),
        (shorten_normals, "steel/normal.png: 25% of its normals are not unit length", "b"),
        (gray_normals, "steel/normal.png: a gray picture", "b"),
        (colour_roughness, "steel/roughness.png: has colour", "b"),
        (repeat_view, "clean/a: two of its views are the same picture", "a"),
        (copy_material, "wood: the same all four maps as material 'steel'", "ac"),
        (copy_most_of_a_material, "wood: the same albedo and normal as material 'steel'", "ac"),
        (drop_view, "clean/a: no 2.png", "a"),
        (drop_map, "steel: no roughness.png", "b"),
        (drop_material, "steel: no such material folder", "b"),
        (add_unlisted_sample, "clean/d: not in the metadata", "d"),
    ],
)
def test_each_fault_is_found_and_nothing_else(folders, tmp_path, plant, message, samples):
    plant(*folders)
    verification = check(folders, fix_list=tmp_path / "fix.txt")
    assert len(verification.faults) == 1
    assert message in verification.faults[0].message
    assert not verification.clean
    assert (tmp_path / "fix.txt").read_text().split() == list(samples)
    assert f"fault  {verification.faults[0].message}" in str(verification).splitlines()


def test_one_pass_lists_the_faults_of_incomplete_samples_too(folders):
    inputs, outputs = folders
    shutil.rmtree(inputs / "dirty/b")
    (inputs / "clean/b/0.png").unlink()
    (inputs / "clean/b/1.png").write_bytes(b"")
    swap_maps(inputs, outputs)
    save(np.zeros((8, 8)), outputs / "steel/metallic.png")
    messages = [fault.message for fault in check(folders).faults]
    assert [message.split(": ")[1] for message in messages] == [
        "no 0.png",
        "not a PNG file",
        "looks swapped",
        "8 px, but 20 of 21 pictures are 16 px",
    ]


def test_materials_may_share_some_maps(folders):
    _, outputs = folders
    for name in ("albedo", "roughness", "metallic"):
        shutil.copy(outputs / f"steel/{name}.png", outputs / f"wood/{name}.png")
    assert check(folders).clean


def test_odd_but_allowed_things_are_notes(folders):
    inputs, outputs = folders
    save(np.full((SIZE, SIZE), 255), outputs / "steel/metallic.png")
    write_material(outputs / "unused", SIZE, np.random.default_rng(4))
    (inputs / "render_metadata.json").write_text(json.dumps(METADATA | {"unrendered": "absent"}))
    verification = check(folders)
    assert verification.clean
    assert [note.split("/output/")[-1] for note in verification.notes] == [
        "1 metadata entries have no sample folder: unrendered",
        "1 material folders are not in the metadata: unused",
        "steel/metallic.png: one value throughout (255)",
    ]


def test_a_flat_normal_map_and_a_flat_blue_albedo_are_fine(tmp_path):
    Image.new("RGB", (8, 8), (128, 128, 255)).save(tmp_path / "flat.png")
    assert inspect_picture(tmp_path / "flat.png", "normal")[0].fault == ""
    assert inspect_picture(tmp_path / "flat.png", "albedo")[0].fault == ""


@pytest.mark.multiprocess
def test_processes_report_what_one_does(folders):
    swap_maps(*folders)
    truncate(*folders)
    assert check(folders, workers=2) == check(folders, workers=1)


def test_an_interrupted_check_goes_on(folders, tmp_path):
    truncate(*folders)
    state = tmp_path / "state.jsonl"
    full = check(folders, resume=state)
    lines = state.read_text().splitlines(keepends=True)
    assert len(lines) == 26

    # As if stopped while it wrote the 11th line.
    state.write_text("".join(lines[:10]) + lines[10][:20])
    assert check(folders, resume=state) == full
    assert state.read_text().splitlines(keepends=True) == lines

    # A judged file is not decoded again until it changes, if only in time.
    marked = [line.replace('"note": ""', '"note": "from the state file"') for line in lines]
    state.write_text("".join(marked))
    view = folders[0] / "clean/a/0.png"
    os.utime(view, ns=(0, view.stat().st_mtime_ns + 1))
    assert check(folders, resume=state).notes == ["from the state file"] * 25

    state.write_text("not JSON\n")
    with pytest.raises(UserError, match=r"state\.jsonl: not a state file"):
        check(folders, resume=state)
