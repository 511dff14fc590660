"""launch/infer.py and launch/data.py: what they write, print and refuse."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neuropbr_dist.commands.data import run as data
from neuropbr_dist.commands.demo import run as demo
from neuropbr_dist.commands.infer import run as infer
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.data.files.decode import read_picture
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.split import split
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference import load_generator, predict
from neuropbr_dist.inference.pictures import maps_to_16_bit
from neuropbr_dist.inference.run import Request, open_inputs
from neuropbr_dist.inference.samples import OpenedSet, SetPlace, SetSamples
from neuropbr_dist.monitor import maps_to_images
from tests.support.disks import small_disk
from tests.support.forked import call
from tests.support.material_files import save, write_set, write_views
from tests.support.trained_run import METADATA, SIZE, trained_run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process saves and loads

ROOT = Path(__file__).resolve().parents[1]
MAPS = ["albedo.png", "roughness.png", "metallic.png", "normal.png"]
FILES = sorted([*MAPS, "view_0.png", "view_1.png", "view_2.png", "picture.png"])


@pytest.fixture(scope="module")
def run():
    return trained_run()[0]


def infer_to(out, *words):
    # --debug: a UserError is raised, not printed.
    infer(["--out-dir", str(out), "--device", "cpu", "--debug", *map(str, words)])


def views_of(paths, size=None):
    return torch.from_numpy(np.stack([read_picture(Path(path), "view", size) for path in paths]))


def assert_maps_in(folder, pred):
    for name, image in maps_to_images(pred).items():
        assert (np.asarray(Image.open(folder / f"{name}.png")) == image).all(), name


def test_sample_of_the_data_set(run, tmp_path, capsys):
    renders = trained_run()[1]
    infer_to(tmp_path / "out", "--checkpoint", run, "--sample-idx", 2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    views = views_of([renders / f"clean/sample_0002/{i}.png" for i in range(3)])
    assert_maps_in(tmp_path / "out", predict(load_generator(run), views))
    assert Image.open(tmp_path / "out" / "roughness.png").mode == "L"
    for i in range(3):
        shown = np.asarray(Image.open(tmp_path / "out" / f"view_{i}.png"))
        assert (shown == views[i].permute(1, 2, 0).numpy()).all()
    said = capsys.readouterr().out
    assert re.search(r"Sample 2 of 6 in .*: clean/sample_0002, material_2 \((train|val) side\), 32 px", said)
    assert re.search(r"albedo +0\.\d+ +0\.\d+ +[\d.]+ dB +-?0\.\d+", said) and "normal angle" in said
    assert f"picture.png to {tmp_path / 'out'}" in said


def test_printed_metrics_are_those_of_the_maps(run, tmp_path, capsys):
    maps = trained_run()[2]
    infer_to(tmp_path, "--checkpoint", run)
    pred = np.asarray(Image.open(tmp_path / "albedo.png")) / 255
    error = np.abs(pred - np.asarray(Image.open(maps / "material_0" / "albedo.png")) / 255).mean()
    printed = float(re.search(r"albedo +(0\.\d+)", capsys.readouterr().out)[1])
    assert printed == pytest.approx(error, abs=1e-3)


@pytest.mark.parametrize("part", ["val", "train"])
def test_split_counts_in_one_side_of_the_runs_split(run, tmp_path, capsys, part):
    config = load_generator(run).config
    entries = [SampleName(name, material) for name, material in METADATA.items()]
    train, val = split(entries, config.data.val_ratio, "material", config.training.seed)
    chosen = {"val": val, "train": train}[part]
    infer_to(tmp_path, "--checkpoint", run, "--split", part, "--sample-idx", len(chosen) - 1)
    assert f"of {len(chosen)} in" in (said := capsys.readouterr().out)
    assert f"clean/{chosen[-1].name}, {chosen[-1].material} ({part} side)" in said
    with pytest.raises(
        UserError, match=rf"--sample-idx {len(chosen)}; allowed: 0 to {len(chosen) - 1}, or all .*{part}"
    ):
        infer_to(tmp_path, "--checkpoint", run, "--split", part, "--sample-idx", len(chosen))


def test_a_side_of_the_split_alone_means_all_of_it_and_writes_a_table(run, tmp_path, capsys):
    infer_to(tmp_path, "--checkpoint", run, "--split", "train")
    said, found = capsys.readouterr().out, json.loads((tmp_path / "metrics.json").read_text())
    assert "Mean of 5 samples:" in said and "mean maps' MAE" in said and "flat normals:" in said
    *rows, mean, baseline = found["rows"].values()
    assert len(rows) == 5 and "mean maps of the training side, flat normals" in found["rows"]
    for name in ("albedo_mae", "normal_angle_mean", "relit_rmse", "roughness_rmse"):
        assert mean[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-5)
    maps = np.stack([maps_of(material) for material in sorted(materials_of(said))])
    guess = maps.mean((0, 2, 3))
    assert baseline["roughness_mae"] == pytest.approx(np.abs(maps[:, 3] - guess[3]).mean(), abs=1e-4)
    lines = (tmp_path / "metrics.md").read_text().splitlines()
    assert len(lines) == 2 + 2 + 5 + 2 and lines[2].count("|") == lines[-1].count("|")


def materials_of(said):
    """The materials' names in what was printed."""
    return set(re.findall(r", (material_\d+) \(", said))


def maps_of(material):
    """True albedo and roughness in [0, 1], (4, H, W)."""
    folder = trained_run()[2] / material
    albedo = np.asarray(Image.open(folder / "albedo.png").convert("RGB")).transpose(2, 0, 1)
    roughness = np.asarray(Image.open(folder / "roughness.png").convert("L"))[None]
    return np.concatenate([albedo, roughness]) / 255


@pytest.mark.parametrize("words", [[], ["--tile", "48", "--size", "64"]], ids=["whole", "tiles"])
def test_every_sample_of_a_packed_set_in_batches(run, tmp_path, capsys, words):
    """Six materials, four a forward pass: a folder each, the same maps as one by one, and their mean at the end."""
    _, renders, maps = trained_run()
    pack(renders, maps, tmp_path / "packed", progress=False)
    batch = ["--data", tmp_path / "packed", "--sample-idx", "all", "--batch-size", 4]
    infer_to(tmp_path / "out", "--checkpoint", run, *batch, *words)
    said = capsys.readouterr().out
    names = [f"clean/{name}" for name in METADATA]
    found = sorted(path.parent.relative_to(tmp_path / "out") for path in tmp_path.glob("out/*/*/picture.png"))
    assert [str(path) for path in found] == sorted(names)
    errors = [float(value) for value in re.findall(r"albedo +(0\.\d+)", said)]
    assert len(errors) == 7 and "Mean of 6 samples:" in said
    assert errors[-1] == pytest.approx(sum(errors[:-1]) / 6, abs=1e-4)
    infer_to(tmp_path / "one", "--checkpoint", run, "--data", tmp_path / "packed", "--sample-idx", 5, *words)
    for name in MAPS:
        one = np.asarray(Image.open(tmp_path / "one" / name)).astype(int)
        among = np.asarray(Image.open(tmp_path / "out" / names[5] / name))
        assert np.abs(one - among).max() <= 1, name


class SampleName:
    def __init__(self, name, material):
        self.name, self.material = name, material


def test_data_set_that_lies_elsewhere_now(run, tmp_path, capsys):
    renders, maps = write_set(tmp_path / "moved", {"only": "one"}, size=48, seed=1)
    infer_to(tmp_path / "out", "--checkpoint", run, "--data-input-dir", renders, "--data-output-dir", maps)
    assert "clean/only, one (split unknown), 32 px" in capsys.readouterr().out
    with pytest.raises(UserError, match="no such folder; say by --data-output-dir"):
        infer_to(tmp_path / "out", "--checkpoint", run, "--data-output-dir", tmp_path / "none")


def test_results_go_nowhere_into_the_set(run, tmp_path):
    """A material's folder holds files of the names that are written."""
    folders = write_set(tmp_path / "set", {"sample_0000": "wood"}, size=SIZE)
    data = ["--data-input-dir", folders[0], "--data-output-dir", folders[1]]
    (tmp_path / "link").symlink_to(folders[1] / "wood")
    for out in (folders[1] / "wood", folders[0] / "{name}", tmp_path / "link"):
        with pytest.raises(UserError, match=r"lies in the data set .*name a folder outside"):
            infer_to(out, "--checkpoint", run, *data)


def test_a_full_disk_is_one_line_and_leaves_no_half_file(run, tmp_path):
    with small_disk(tmp_path / "disk", "16k") as folder:
        with pytest.raises(UserError, match=r"\.png: can't be written: No space left on device"):
            infer_to(folder / "out", "--checkpoint", run, "--size", "256")
        assert not list(folder.rglob(".*"))


def test_own_renders_are_taken_alphabetically_at_the_runs_size(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in ("zinc.png", "Amber.PNG", "m.png"):
        save(rng.integers(0, 256, (40, 40, 3)), tmp_path / "in" / name)
    infer_to(tmp_path / "out", "--checkpoint", run, "--input-dir", tmp_path / "in")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    views = views_of([tmp_path / "in" / name for name in ("Amber.PNG", "m.png", "zinc.png")], SIZE)
    assert_maps_in(tmp_path / "out", predict(load_generator(run), views))
    said = capsys.readouterr().out
    assert "Renders Amber.PNG, m.png, zinc.png" in said and "MAE" not in said


@pytest.mark.parametrize(
    ("words", "side"),
    [
        ("--size native", 40), ("--size 48", 48), ("--set data.image_size=48", 48), ("--set data.image_size=null", 40),
        ("--size 48 --set data.image_size=48", 48),
    ],
)  # fmt: skip
def test_size_overrides_the_runs(run, tmp_path, words, side):
    write_views(tmp_path / "in", 40, np.random.default_rng(0))
    infer_to(tmp_path / "out", "--checkpoint", run, "--input-dir", tmp_path / "in", *words.split())
    assert Image.open(tmp_path / "out" / "normal.png").size == (side, side)
    assert Image.open(tmp_path / "out" / "view_0.png").size == (side, side)


def test_folder_of_folders_skips_its_own_results(run, tmp_path):
    for name in ("brass", "oak"):
        write_views(tmp_path / name, SIZE, np.random.default_rng(len(name)))
    for _ in range(2):
        infer_to(tmp_path / "out", "--checkpoint", run, "--input-dir", tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["brass", "oak"]
    for name in ("brass", "oak"):
        views = views_of([tmp_path / name / f"{i}.png" for i in range(3)])
        assert_maps_in(tmp_path / "out" / name, predict(load_generator(run), views))


def test_results_among_renders_are_refused(run, tmp_path):
    for name in ("brass", "oak"):
        write_views(tmp_path / name, SIZE, np.random.default_rng(len(name)))
    with pytest.raises(UserError, match=r"--out-dir .*oak: holds pictures of a material itself"):
        infer_to(tmp_path / "oak", "--checkpoint", run, "--input-dir", tmp_path)


def test_16_bit_maps_hold_the_prediction_to_half_a_level(run, tmp_path):
    write_views(tmp_path / "in", SIZE, np.random.default_rng(0))
    infer_to(tmp_path / "out", "--checkpoint", run, "--input-dir", tmp_path / "in", "--bits", 16)
    pred = predict(load_generator(run), views_of([tmp_path / "in" / f"{i}.png" for i in range(3)]))
    roughness = np.asarray(Image.open(tmp_path / "out" / "roughness.png"))
    assert roughness.max() > 255
    assert np.abs(roughness / 65535 - pred[3].numpy()).max() <= 0.5 / 65535 + 1e-7
    levels = maps_to_16_bit(pred)
    for name in ("albedo", "normal"):
        found = read_picture(tmp_path / "out" / f"{name}.png", name)
        assert (found == (levels[name].astype(int).transpose(2, 0, 1) + 128) // 257).all()


def test_tiles_from_the_command_line(run, tmp_path):
    write_views(tmp_path / "in", 96, np.random.default_rng(0))
    words = ["--checkpoint", run, "--input-dir", tmp_path / "in", "--size", "native"]
    infer_to(tmp_path / "out", *words, "--tile", 64, "--overlap", 40)
    views = views_of([tmp_path / "in" / f"{i}.png" for i in range(3)])
    assert_maps_in(tmp_path / "out", predict(load_generator(run), views, tile=64, overlap=40))


def no_third(folder):
    (folder / "2.png").unlink()


def a_fourth(folder):
    shutil.copy(folder / "2.png", folder / "3.png")


def no_square(folder):
    save(np.zeros((32, 40, 3)), folder / "1.png")


def cut_short(folder):
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:-20])


def another_size(folder):
    save(np.zeros((48, 48, 3)), folder / "1.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_third, r"exactly three PNG files are needed, found 2: 0\.png, 1\.png"),
        (a_fourth, "exactly three PNG files are needed, found 4"),
        (no_square, r"1\.png: 40 x 32; pictures must be square"),
        (cut_short, r"0\.png: truncated"),
        (another_size, r"1\.png: 48 px a side, but .*0\.png has 32; --size N"),
    ],
)
def test_renders_that_cannot_be_used_are_named(run, tmp_path, spoil, message):
    write_views(tmp_path / "in", 32, np.random.default_rng(0))
    spoil(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        infer_to(tmp_path / "out", "--checkpoint", run, "--input-dir", tmp_path / "in", "--size", "native")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input-dir", "."], "the same as --input-dir"),
        (["--input-dir", "none"], "--input-dir none: no such folder"),
        (["--input-dir", ".", "--split", "val"], "--split is about --sample-idx"),
        (["--overlap", "40"], "--overlap needs --tile"),
        (["--size", "30"], "30 px a side.*nearest: 28 or 32"),
        (["--set", "data.image_size=30"], "30 px a side.*nearest: 28 or 32"),
        (["--size", "32", "--set", "data.image_size=64"], "--size 32 means data.image_size, but that is 64"),
        (
            ["--set", "model.transformer_depth=3"],
            r"--set model\.transformer_depth: the checkpoint says it.*data\.\*",
        ),
        (["--sample-idx", "-1"], "--sample-idx -1; allowed: 0 to 5"),
    ],
)
def test_flags_that_make_no_sense_are_refused(run, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        infer_to(".", "--checkpoint", run, *words)
    assert not list(tmp_path.iterdir())


def test_an_error_is_one_line_and_exit_code_2(tmp_path):
    done = call("from neuropbr_dist.commands.infer import run\nrun()\n", "--checkpoint", tmp_path / "none")
    assert done.code == 2 and done.out == ""
    assert (
        done.err.startswith(f"error: {tmp_path / 'none'}: no such checkpoint") and done.err.count("\n") == 1
    )


def test_an_ascii_terminal_shows_any_name(tmp_path):
    script = [sys.executable, str(ROOT / "launch/data.py"), "verify", str(tmp_path / "größe"), str(tmp_path)]
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(script, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and r"gr\xf6\xdfe" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])  # the pipe breaks at the end, or at the first word
def test_output_that_nobody_reads_ends_it_quietly(tmp_path, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    script = [sys.executable, str(ROOT / "launch/data.py"), "generate", str(tmp_path / "set")]
    done = subprocess.run(
        [*script, "--count", "1", "--size", "8", "--clean-only"], stdout=writer, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 141 and "Error" not in done.stderr


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["--steps", "3"], 2)])
def test_demo_takes_no_words(monkeypatch, words, code):
    monkeypatch.setattr("neuropbr_dist.commands.demo.call", lambda *_: pytest.fail("it trains"))
    with pytest.raises(SystemExit) as stopped:
        demo(words)
    assert stopped.value.code == code


def test_run_on_built_in_materials(run, tmp_path, monkeypatch, capsys):
    config = load_generator(run).config
    config.data.input_dir = config.data.output_dir = None
    config.data.builtin_count, config.data.builtin_cache = 2, str(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (subject,) = OpenedSet(config, SetSamples(index=1)).subjects()
    assert subject.views.shape == (3, 3, 32, 32) and subject.maps.shape == (8, 32, 32)
    assert "built-in materials: clean/sample_0001" in subject.label
    with pytest.raises(UserError, match="name both"):
        OpenedSet(config, SetSamples(place=SetPlace(input_dir="renders")))


def test_a_saved_cache_is_made_where_the_command_says(run, tmp_path):
    model = load_generator(run)
    model.config.data.input_dir = model.config.data.output_dir = None
    model.config.data.builtin_count, model.config.data.builtin_cache = 2, str(tmp_path / "cache")
    request = Request(checkpoint="run", materials=SetSamples(index=0, part="all"), out_dir=tmp_path / "out")
    with pytest.raises(
        UserError, match=r"--checkpoint run: the saved run keeps .*--set data\.builtin_cache="
    ):
        open_inputs(request, model)
    assert not (tmp_path / "cache").exists()
    said = Overrides().with_field("data.builtin_cache", str(tmp_path / "cache"))
    assert next(open_inputs(replace(request, overrides=said), model).subjects()).title


def test_data_generate_and_verify(tmp_path, capsys):
    out = tmp_path / "set"
    data(["generate", str(out), "--count", "3", "--size", "32", "--seed", "5"])
    assert len(list((out / "input" / "dirty").iterdir())) == 3
    data(["verify", str(out / "input"), str(out / "output")])
    assert "6 sample entries" in (said := capsys.readouterr().out) and "clean" in said
    data(["generate", str(tmp_path / "clean"), "--count", "2", "--size", "32", "--clean-only"])
    assert not (tmp_path / "clean" / "input" / "dirty").exists()


@pytest.mark.parametrize("workers", ["0", "-1"])
@pytest.mark.parametrize("command", [["verify"], ["pack", "dest"]])
def test_data_refuses_workers_below_1(tmp_path, capsys, command, workers):
    words = [command[0], *map(str, write_set(tmp_path)), *command[1:], "--workers", workers, "--debug"]
    with pytest.raises(UserError, match=f"--workers {workers}: must be 1 or more"):
        data(words)


def test_data_verify_exits_with_1_and_lists_what_to_mend(tmp_path, capsys):
    renders, maps = write_set(tmp_path)
    (renders / "clean" / "sample_0001" / "1.png").write_bytes(b"no picture")
    words = ["verify", str(renders), str(maps), "--metadata", str(renders / "render_metadata.json")]
    words += ["--fix-list", str(tmp_path / "fix.txt"), "--resume", str(tmp_path / "state.jsonl")]
    with pytest.raises(SystemExit) as stopped:
        data(words)
    assert stopped.value.code == 1
    assert "1.png: not a PNG file" in capsys.readouterr().out
    assert (tmp_path / "fix.txt").read_text() == "sample_0001\n"
    assert (tmp_path / "state.jsonl").exists()
