"""`launch/benchmark.py quality` and `plane`: variants are trained, judged on two sets, and shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from benchmarks import plane, plane_table, quality, variants
from benchmarks.judging import as_they_are, cameras_of, held_out
from benchmarks.quality_table import CELL, COLUMNS, FEWER, MEAN, Result, table
from benchmarks.runs import ms_per_step
from neuropbr_dist.commands.data.generate import run as generate
from neuropbr_dist.config import differences, load, with_fields
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.inference import load_generator
from neuropbr_dist.inference.generator import InferenceGenerator
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.monitor.run_logs import HISTORY, run_log
from tests.support.tiny import MODEL

CONFIG = {
    "data": {"builtin": True, "builtin_count": 8, "render": "online", "renders_per_epoch": 1, "val_ratio": 0.25,
             "image_size": 32, "mixtures": 0.3, "num_workers": 0},
    "model": {**MODEL, "align": "plane", "use_gan": False},
    "loss": {"w_gan": 0.0},
    "training": {"batch_size": 3, "global_batch_size": 3, "log_every_n_steps": 1, "device": "cpu"},
}  # fmt: skip


SETS = ["held-out built-ins", "real, named samples", "real, all with cameras"]


@pytest.fixture
def words(tmp_path):
    """What both measurements are told."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    generate([str(tmp_path / "real"), "--count", "2", "--size", "32"])
    return [
        "--to", str(tmp_path / "to"), "--runs", str(tmp_path / "runs"), "--config", str(tmp_path / "tiny.yaml"),
        "--seeds", "1", "--real", str(tmp_path / "real/input"), str(tmp_path / "real/output"),
        "--samples", "sample_0001",
    ]  # fmt: skip


@pytest.mark.drill
@pytest.mark.multiprocess
def test_variants_are_trained_and_judged(words, tmp_path, capsys):
    quality.run([*words, "--epochs", "2", "--variants", "recipe", "gan", "single_view"])
    page = (tmp_path / "to/quality.md").read_text()
    assert page in capsys.readouterr().out and "- `single_view`: data.views=1" in page
    sets = SETS
    for where in [*sets, *(f"{each}, {fewer}" for each in sets for fewer in FEWER)]:
        assert f"## {where[0].upper()}{where[1:]}\n" in page
    runs = json.loads((tmp_path / "to/quality.json").read_text())["runs"]
    assert {name: run["steps"] for name, run in runs.items()} == {
        "recipe-1": 4,
        "gan-1": 4,
        "single_view-1": 4,
    }
    assert runs["single_view-1"]["rows"].keys() == set(sets), "of one view none can be missing"
    # One sample alone, and the two together, are not the same; the runs' maps differ.
    named, both = (runs["recipe-1"]["rows"][where]["albedo_mae"] for where in sets[1:])
    assert named != both and runs["gan-1"]["rows"][sets[0]]["l1"] != runs["recipe-1"]["rows"][sets[0]]["l1"]
    assert runs["gan-1"]["baseline"].keys() == set(sets) and page.count(f"| {MEAN} |") == 9
    logged = [json.loads(line) for line in (tmp_path / "to/metrics.jsonl").read_text().splitlines()]
    assert {line["run"] for line in logged if "train/D_loss" in line} == {"gan-1"}
    # The same weights before the first step, but other views; and so in training.
    began = {line["run"]: line["val/l1"] for line in logged if line["step"] == 0}
    assert began["single_view-1"] != began["recipe-1"] == began["gan-1"]
    first = {line["run"]: line["train/G_loss"] for line in logged if line["step"] == 1}
    assert first["single_view-1"] != first["recipe-1"]
    assert Image.open(tmp_path / "to/quality.jpg").width == CELL * (
        1 + 4 * 4
    )  # a view; true maps, three runs'


@pytest.mark.drill
@pytest.mark.multiprocess
def test_a_run_may_take_several_gpus(words, tmp_path, monkeypatch):
    """Ranks of a CPU, as many as there would be GPUs."""
    monkeypatch.setattr(quality, "gpus", lambda: [0, 1])
    quality.run([*words, "--epochs", "2", "--gpus-per-run", "2"])
    began = run_log(tmp_path / "runs" / "recipe-1", HISTORY).read()[0]
    assert (began["world_size"], began["global_batch"]) == (2, 3)
    assert json.loads((tmp_path / "to/quality.json").read_text())["runs"]["recipe-1"]["steps"] == 4


@pytest.mark.parametrize("variant", [name for name in quality.VARIANTS if name != "recipe"])
def test_every_variant_changes_the_recipe_to_what_can_be_trained(variant):
    fields = ("data.builtin=true", *quality.own_fields(variant, 230))
    plain, changed = (
        Overrides(config="recipe", assignments=sets).configuration() for sets in (fields[:1], fields)
    )
    assert differences(plain, changed)


@pytest.mark.drill
@pytest.mark.multiprocess
def test_minutes_are_shared_by_the_stages(words, tmp_path, monkeypatch):
    """Each stage is timed at its own side; the edges keep their proportion in what fits."""
    monkeypatch.setattr(quality, "STEPS_TO_TIME", 12)
    monkeypatch.setattr(quality, "LOG_EVERY", 3)
    monkeypatch.setattr(quality, "SHARE", 1 / 6)  # epochs so short take longer than their steps
    stages = [
        {"until_epoch": epoch, "image_size": side, "batch_size": 3, "global_batch_size": 3}
        for epoch, side in ((30, 16), (40, 32))
    ]
    data = {**CONFIG["data"], "image_size": None}
    training = {"log_every_n_steps": 1, "device": "cpu", "val_every_n_epochs": 1000, "stages": stages}
    config = {**CONFIG, "data": data, "training": training}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    made: list[int] = []
    monkeypatch.setattr(
        variants, "fill_cache", lambda sources: made.extend(source.size for source in sources)
    )
    quality.run([*words, "--minutes", "0.2", "--variants", "recipe"])
    assert made == [16, 32], "built-in materials are made at the stages' sides, not at their own 2048"
    history = [
        run_log(tmp_path / "runs" / name, HISTORY).read() for name in ("timing-1", "timing-2", "recipe-1")
    ]
    assert [lines[0]["image_size"] for lines in history] == [16, 32, 16]
    # Two steps an epoch of six samples; thirty epochs of one kind and ten of the other.
    small, large = (2 / 1000 * ms_per_step(tmp_path / "runs" / name) for name in ("timing-1", "timing-2"))
    epochs = int(1 / 6 * 12 / (0.75 * small + 0.25 * large))
    assert history[2][-1]["step"] == 2 * max(2, epochs)


# -- plane ---------------------------------------------------------------------------------


@pytest.mark.drill
@pytest.mark.multiprocess
def test_the_planes_table_holds_what_the_weights_predict(words, tmp_path):
    plane.run([*words, "--epochs", "1", "--variants", "plane"])
    (run,) = json.loads((tmp_path / "to/plane.json").read_text())["runs"]
    changes = ["", ", a view missing", ", jittered by up to 4/512", ", each shifted by 4/512"]
    assert list(run["rows"]) == [f"{where}{change}" for where in SETS for change in changes]
    values = [row["albedo_mae"] for row in run["rows"].values()]
    assert len(set(values)) == len(values), "each row is judged in its own way"
    model = load_generator(tmp_path / "runs/plane-1")
    assert run["rows"][SETS[0]]["albedo_mae"] == pytest.approx(albedo_error(model), rel=1e-4)
    page = (tmp_path / "to/plane.md").read_text()
    for where, metrics in run["rows"].items():
        head, _, row = page.split(f"## {where[0].upper()}{where[1:]}\n\n")[1].splitlines()[:3]
        shown = dict(zip(cells(head), cells(row), strict=True))
        assert shown == {
            "run": "plane-1", "steps": "2", "ms": f"{run['ms_per_step']:.1f}",
            "albedo": f"{metrics['albedo_mae']:.4f}", "roughness": f"{metrics['roughness_mae']:.4f}",
            "metallic": f"{metrics['metallic_mae']:.4f}", "normals, °": f"{metrics['normal_angle_mean']:.2f}",
            "SSIM of the albedo": f"{metrics['albedo_ssim']:.3f}",
        }  # fmt: skip
    width = Image.open(tmp_path / "to/plane.png").width
    assert width == plane_table.CELL * (2 + 3 * 2)  # a view, rectified; three maps, the run's and true


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def albedo_error(model: InferenceGenerator) -> float:
    """Mean absolute error of the albedo on held-out built-in materials, one by one."""
    source, entries = held_out(model.config)
    errors = []
    for entry in entries:
        views, maps = (torch.from_numpy(np.array(part))[None] for part in source.load(entry))
        pred = model(views, torch.from_numpy(source.cameras(entry))[None])
        errors.append((pred - decode_maps(maps))[:, :3].abs().mean().item())
    return sum(errors) / len(errors)


# -- what is judged ------------------------------------------------------------------------


def untrained(tmp_path: Path, **data: object) -> InferenceGenerator:
    fields = {"builtin_count": 8, "image_size": 32, "builtin_cache": str(tmp_path), **data}
    return InferenceGenerator(with_fields(load("recipe"), data=fields, model=MODEL), tmp_path, 0)


@pytest.mark.parametrize(
    "data",
    [
        {"input_dir": "IN", "output_dir": "OUT", "metadata_path": "META", "render": "stored"},
        {"packed_dir": "SET", "render": "stored"},
        {"materials_dir": "MAPS"},
    ],
    ids=lambda data: next(iter(data)),
)
def test_what_is_called_held_out_built_ins_is_built_in(tmp_path, data):
    own = held_out(untrained(tmp_path, builtin=True).config)
    other = held_out(untrained(tmp_path, **data).config)
    assert [entry.key for entry in other[1]] == [entry.key for entry in own[1]] and len(own[1]) == 1
    assert type(other[0]) is type(own[0]) and other[0].size == 32


def test_one_view_is_the_first_that_is_there(tmp_path):
    model = untrained(tmp_path, builtin=True)
    source, entries = held_out(model.config)
    cameras = np.array(source.cameras(entries[0]))
    assert (cameras != 0).any(1).all()
    model.config = with_fields(model.config, data={"views": 1})
    (judged,) = cameras_of(model, source, entries[0], as_they_are)
    assert (judged[0] == cameras[0]).all() and not judged[1:].any()


def test_each_seed_stands_beside_flat_normals_of_its_own_held_out_materials():
    def result(name: str, angle: float, flat: float) -> Result:
        rows = {"held-out built-ins, a view missing": angle, "held-out built-ins": 1.0}
        metrics = {where: dict.fromkeys((key for key, *_ in COLUMNS), value) for where, value in rows.items()}
        baseline = {"held-out built-ins": dict.fromkeys((key for key, *_ in COLUMNS), flat)}
        return Result(name, Path(), None, metrics, baseline)  # type: ignore[arg-type]

    results = [result("recipe-42", 6, 12), result("recipe-43", 6, 8), result("gan-42", 9, 12)]
    last = {row[0]: row[-1] for row in map(cells, table(results, "held-out built-ins, a view missing"))}
    assert last == {
        "run": "× flat", "---": "---", f"{MEAN}, seed 42": "1.00", f"{MEAN}, seed 43": "1.00",
        "recipe-42": "0.50", "recipe-43": "0.75", "**recipe, mean**": "0.62", "gan-42": "0.75",
    }  # fmt: skip


def test_a_gan_starts_by_shares_of_the_run():
    assert "training.gan_start_epoch=18" in quality.own_fields("gan", 30)
    assert quality.own_fields("gan_early", 30)[-1] == "training.gan_start_epoch=2"
    assert quality.own_fields("recipe", 30) == []
