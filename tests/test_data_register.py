"""Cameras for sets that have none: how near the found ones are, what bad input comes to, and who takes the result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from neuropbr_dist.commands.data.register import run as register_command
from neuropbr_dist.commands.data.verify import run as verify_command
from neuropbr_dist.data.builtin import generate
from neuropbr_dist.data.cameras import SampleCameras, read_cameras, write_cameras
from neuropbr_dist.data.files.layout import index_set
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.packed.source import PackedSet
from neuropbr_dist.data.register import run as run_module
from neuropbr_dist.data.register import work
from neuropbr_dist.data.register.check import misplaced
from neuropbr_dist.data.register.mixups import mixed_up
from neuropbr_dist.data.register.pose import error_on_map
from neuropbr_dist.data.register.run import register
from neuropbr_dist.data.register.search import Settings, confidence_of
from neuropbr_dist.data.register.work import Job, Outcome, ViewOutcome
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import JsonLines
from neuropbr_dist.materials.plane import MATRIX, turn_of_picture
from tests.support.forked import Launch
from tests.support.material_files import save
from tests.support.tiny import FIELDS, set_words
from tests.support.train_runs import SINGLE_PROCESS_SAVES, command
from tests.support.upstream_renders import write_upstream_set

SIZE = 256
BRICKS_FIRST = 6  # seed: bricks, then hammered metal
REGISTER = "from neuropbr_dist.commands.data.register import run\nrun()\n"


def errors(found, true, side: int) -> np.ndarray:
    """Of all views, in pixels of a map."""
    return np.array(
        [
            error_on_map(mine.map_to_view, right.map_to_view, wrap=True) * side
            for name in true
            for mine, right in zip(found[name].of("clean"), true[name].of("clean"), strict=True)
        ]
    )


def wait_for(happened, process) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.02)


def lines_of(path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def builtin(tmp_path_factory):
    """A built-in set; its cameras were found by a call that was killed after a sample, and one that went on."""
    root = tmp_path_factory.mktemp("builtin")
    generate(root, count=2, size=SIZE, seed=BRICKS_FIRST, workers=1, curriculum_dirty=False, progress=False)
    renders, materials = root / "input", root / "output"
    true = read_cameras(renders / "cameras.json").samples
    (renders / "cameras.json").unlink()
    killed = Launch([str(renders), str(materials), "--workers", "1"], program=REGISTER)
    wait_for(lambda: lines_of(renders / "cameras.register.jsonl") > 1, killed.process)
    killed.process.kill()
    killed.wait()
    assert not (renders / "cameras.json").exists()
    done, redone = JsonLines(renders / "cameras.register.jsonl").read()[1:], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run_module, "register_sample", lambda job: (redone.append(job.name), work.register_sample(job))[1]
        )
        registration = register(renders, materials, progress=False)
    return SimpleNamespace(
        renders=renders, materials=materials, true=true, registration=registration, done=done, redone=redone,
        found=read_cameras(renders / "cameras.json").samples,
    )  # fmt: skip


@pytest.fixture
def samples(builtin):
    """The built-in set's entries, with the cameras that were found."""
    return index_set(builtin.renders, builtin.materials).samples


# -- figures -----------------------------------------------------------------------------------


def test_of_builtin_bricks_and_metal_every_camera_is_found(builtin):
    assert builtin.registration.share == 1
    assert errors(builtin.found, builtin.true, 512).max() < 1
    assert all(sample.wrap for sample in builtin.found.values()), "the maps tile, which nobody said"
    sheet = Image.open(builtin.renders / "cameras.jpg")
    assert sheet.width == 4 * 200 and sheet.height == 2 * 218


def test_upstreams_renders_get_upstreams_cameras(tmp_path):
    write_upstream_set(tmp_path, 1, SIZE, BRICKS_FIRST)
    true = read_cameras(tmp_path / "input" / "cameras.json").samples
    found = tmp_path / "found.json"
    registration = register(tmp_path / "input", tmp_path / "output", to=found, progress=False)
    assert errors(read_cameras(found).samples, true, 2048).max() < 2 and registration.share == 1
    assert "3 of the 3 cameras looked at first are upstream's, so upstream was taken" in str(registration)


def test_confidence_is_one_half_at_most_where_another_place_fits_as_well():
    assert confidence_of(0.95, 0.0) == confidence_of(-0.1, 1.0) == 0
    assert confidence_of(0.3, 0.25) < 0.5 < confidence_of(0.9, 0.25)
    gains = [confidence_of(0.8, gain) for gain in (0.05, 0.1, 0.2, 0.5, 2.0)]
    assert gains == sorted(gains) and gains[-1] > 0.95


# -- what is kept ------------------------------------------------------------------------------


def test_a_killed_call_goes_on_with_the_samples_that_it_had_not_done(builtin):
    names = [line["outcome"]["name"] for line in builtin.done]
    assert names and sorted(names + builtin.redone) == ["sample_0000", "sample_0001"]
    first = builtin.found[names[0]].of("clean")
    kept = Outcome.of_line(builtin.done[0]["outcome"]).views["clean"]
    np.testing.assert_allclose([c.map_to_view for c in first], [v.map_to_view for v in kept], atol=1e-8)
    assert sorted(path.name for path in builtin.renders.iterdir()) == [
        "cameras.jpg", "cameras.json", "clean", "render_metadata.json",
    ]  # fmt: skip


def test_what_the_file_has_is_kept_and_only_the_rest_is_looked_for(builtin, tmp_path):
    to = tmp_path / "cameras.json"
    first, *others = builtin.found["sample_0000"].of("clean")
    odd = replace(others[0], confidence=0.125)
    given = {"sample_0000": SampleCameras({"clean": (None, odd, others[1])}, True)}
    given["sample_0001"] = given["another_set's"] = builtin.found["sample_0001"]
    write_cameras(to, given)
    register(builtin.renders, builtin.materials, to=to, progress=False)
    found = read_cameras(to).samples
    assert sorted(found) == ["another_set's", "sample_0000", "sample_0001"]
    mine = found["sample_0000"].of("clean")
    assert error_on_map(mine[0].map_to_view, first.map_to_view, wrap=True) * 512 < 0.5
    assert mine[1].confidence == 0.125
    kept = found["another_set's"].encoded("clean"), builtin.found["sample_0001"].encoded("clean")
    np.testing.assert_allclose(*kept, atol=1e-7)


# -- bad input ---------------------------------------------------------------------------------


@pytest.fixture
def flat(tmp_path):
    """A sample without texture, whose three views are one picture."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (64, 64, 3))
    for number in range(3):
        (tmp_path / "in" / "clean" / "a").mkdir(parents=True, exist_ok=True)
        save(picture, tmp_path / "in" / "clean" / "a" / f"{number}.png")
    (tmp_path / "out" / "plain").mkdir(parents=True)
    for name, level in {
        "albedo": (90, 80, 70),
        "roughness": 128,
        "metallic": 0,
        "normal": (128, 128, 255),
    }.items():
        save(np.full((64, 64, *np.shape(level)), level), tmp_path / "out" / "plain" / f"{name}.png")
    (tmp_path / "in" / "render_metadata.json").write_text(json.dumps({"a": "plain"}))
    return tmp_path / "in", tmp_path / "out"


def test_without_texture_nothing_is_found_and_the_exit_code_is_1(flat, capsys):
    with pytest.raises(SystemExit) as ended:
        register_command([*map(str, flat), "--workers", "1"])
    said = capsys.readouterr().out
    assert ended.value.code == 1
    assert "a (plain): all three of its clean views are the same picture" in said
    assert "a (plain), clean views: not found: the maps have no texture to lay it on" in said
    assert "0% of the views got a sure camera, fewer than --least 0.5" in said
    assert read_cameras(flat[0] / "cameras.json").samples["a"].of("clean") == (None, None, None)
    register_command([*map(str, flat), "--workers", "1", "--least", "0"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fov", "3"], "--fov 3: allowed: 5 to 120 degrees, or 0 where it isn't known"),
        (["--least", "2"], "--least 2: allowed: 0 to 1"),
        (["--to", "nowhere/cameras.json"], "nowhere"),
    ],
)
def test_words_that_cannot_be(flat, words, said):
    with pytest.raises(UserError, match=said):
        register_command([*map(str, flat), *words, "--debug"])
    assert not (flat[0] / "cameras.json").exists()


def test_without_opencv_one_line_says_what_to_install(flat, monkeypatch):
    monkeypatch.setattr("neuropbr_dist.data.register.has_opencv", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'neuropbr_dist\[register\]'"):
        register_command([*map(str, flat), "--debug"])


def test_a_mix_up_in_the_metadata_is_named(samples):
    maps = {sample.material: sample.maps for sample in samples}
    first, second = sorted(maps)
    views = {sample.material: sample.views for sample in samples}
    jobs = [
        Job("a", second, maps[second], {"clean": views[first][:1]}),
        Job("b", first, maps[first], {"clean": views[first][:1]}),
    ]
    found = ViewOutcome(), ViewOutcome(np.eye(3).tolist(), confidence=1.0)
    outcomes = [
        Outcome(job.name, job.material, [], {"clean": [view]}) for job, view in zip(jobs, found, strict=True)
    ]
    remarks = mixed_up(jobs, outcomes, Settings("free"), workers=1)
    assert [remark.split(" (")[0] for remark in remarks] == [f"a: its views show {first}, not {second}"]


@pytest.mark.drill
def test_views_of_another_material_get_no_sure_camera(builtin, tmp_path, capsys):
    renders = shutil.copytree(builtin.renders, tmp_path / "in")
    metadata = json.loads((renders / "render_metadata.json").read_text())
    metadata = dict(zip(metadata, reversed(metadata.values()), strict=True))
    (renders / "render_metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(SystemExit) as ended:
        register_command([str(renders), str(builtin.materials), "--overwrite", "--workers", "2"])
    said = capsys.readouterr().out
    assert ended.value.code == 1 and said.count("a mix-up in the metadata, or in the folders?") == 2
    found = read_cameras(renders / "cameras.json").samples.values()
    assert not [c for sample in found for c in sample.of("clean") if c and c.confidence > 0.5]


@pytest.mark.drill
@pytest.mark.multiprocess
def test_ctrl_c_leaves_nothing_but_the_journal_and_the_next_call_comes_to_the_same(builtin, tmp_path):
    renders = shutil.copytree(builtin.renders, tmp_path / "in")
    for name in ("cameras.json", "cameras.jpg"):
        (renders / name).unlink()
    words = [str(renders), str(builtin.materials), "--workers", "2"]
    stopped = Launch(words, program=REGISTER)
    wait_for(lambda: lines_of(renders / "cameras.register.jsonl") > 1, stopped.process)
    os.kill(stopped.process.pid, signal.SIGINT)
    assert stopped.wait().code != 0
    assert (renders / "cameras.register.jsonl").exists() and not (renders / "cameras.json").exists()
    assert Launch(words, program=REGISTER).wait().code == 0
    assert (renders / "cameras.json").read_bytes() == (builtin.renders / "cameras.json").read_bytes()


# -- verify ------------------------------------------------------------------------------------


def with_matrices(sample, change):
    """The sample with each view's `map_to_view` changed: `change(number, matrix, all matrices)`."""
    cameras = sample.cameras.copy()
    before = [row[MATRIX].reshape(3, 3).astype(float) for row in sample.cameras]
    for number, row in enumerate(cameras):
        row[MATRIX] = change(number, before[number], before).ravel()
    return replace(sample, cameras=cameras)


def test_verify_says_how_far_views_and_maps_are_apart(builtin, capsys):
    verify_command([str(builtin.renders), str(builtin.materials), "--workers", "1"])
    said = next(line for line in capsys.readouterr().out.splitlines() if "px apart" in line)
    assert float(said.split("maps are ")[1].split(" px")[0]) < 0.3


def test_verify_names_views_that_lie_elsewhere(samples):
    brick = samples[0]
    along = np.eye(3)
    along[0, 2] = 12 / SIZE
    moved = with_matrices(brick, lambda number, matrix, _: along @ matrix if number == 1 else matrix)
    mirrored = with_matrices(
        brick, lambda number, matrix, _: turn_of_picture(4) @ matrix if number == 2 else matrix
    )
    exchanged = with_matrices(brick, lambda number, _, every: every[(1, 0, 2)[number]])
    said = [
        [fault.message for fault in misplaced([sample], 1, False)[0]]
        for sample in (moved, mirrored, exchanged)
    ]
    assert (
        len(said[0]) == 1
        and "view 1 is " in said[0][0]
        and f"px of the maps' {SIZE} from where its camera says" in said[0][0]
    )
    assert float(said[0][0].split("view 1 is ")[1].split(" px")[0]) == pytest.approx(12, rel=0.5)
    assert [line.split(": ")[1] for line in said[1]] == ["view 2 is mirrored"]
    assert [line.split(": ")[1] for line in said[2]] == [
        "view 0 is seen by the camera of view 1", "view 1 is seen by the camera of view 0",
    ]  # fmt: skip


def test_verify_names_swapped_samples_and_views_of_another_material(samples):
    first, second = samples
    swapped = [replace(first, views=second.views), replace(second, views=first.views)]
    faults, _ = misplaced(swapped, 1, False)
    assert {fault.message for fault in faults} == {
        f"{a.key}: its views are those of {b.key}: swapped?" for a, b in ((first, second), (second, first))
    }
    mixed = [
        replace(first, material=second.material, maps=second.maps),
        replace(second, material=first.material, maps=first.maps),
    ]
    faults, _ = misplaced(mixed, 1, False)
    assert {fault.message for fault in faults} == {
        f"{a.key}: its views show {a.material}, not {b.material}: a mix-up in the metadata?"
        for a, b in ((first, second), (second, first))
    }


# -- who takes the result ----------------------------------------------------------------------


@SINGLE_PROCESS_SAVES
def test_pack_and_training_take_the_found_cameras(builtin, samples, tmp_path):
    pack(builtin.renders, builtin.materials, tmp_path / "packed", workers=1, progress=False)
    packed = PackedSet(tmp_path / "packed").column("cameras")
    np.testing.assert_array_equal(packed, [sample.cameras for sample in samples])
    sets = {
        **FIELDS, "data.image_size": 32, "data.num_workers": 0, "data.val_ratio": 0.5, "model.use_gan": False,
        "loss.w_gan": 0, "training.batch_size": 1, "training.global_batch_size": 1, "training.use_tensorboard": False,
    }  # fmt: skip
    folders = ["--data", str(tmp_path / "packed"), "--checkpoint-dir", str(tmp_path / "run")]
    ended = command(*folders, "--device", "cpu", "--stop-after-steps", "1", *set_words(sets))
    assert ended.code == 0, ended.err
    assert "plane" in ended.out


def test_a_missing_camera_file_is_an_error_of_one_line(builtin, tmp_path):
    (tmp_path / "cameras.json").write_text("{")
    with pytest.raises(UserError, match=r"cameras\.json"):
        register(builtin.renders, builtin.materials, to=tmp_path / "cameras.json", progress=False)
