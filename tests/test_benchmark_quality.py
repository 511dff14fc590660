"""`launch/benchmark.py quality`: variants are trained, judged on two sets beside mean maps, and shown."""

from __future__ import annotations

import json

import pytest
import yaml
from PIL import Image

from benchmarks import quality
from benchmarks.quality_table import CELL, MEAN
from neuropbr_dist.commands.data.generate import run as generate
from tests.support.tiny import MODEL

CONFIG = {
    "data": {"builtin": True, "builtin_count": 8, "render": "online", "renders_per_epoch": 1, "val_ratio": 0.25,
             "image_size": 32, "mixtures": 0.3, "num_workers": 0},
    "model": {**MODEL, "align": "plane", "use_gan": False},
    "loss": {"w_gan": 0.0},
    "training": {"batch_size": 3, "global_batch_size": 3, "log_every_n_steps": 1, "device": "cpu"},
}  # fmt: skip


@pytest.mark.drill
@pytest.mark.multiprocess
def test_variants_are_trained_and_judged(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    generate([str(tmp_path / "real"), "--count", "2", "--size", "32"])
    quality.run([
        "--to", str(tmp_path / "to"), "--runs", str(tmp_path / "runs"), "--config", str(tmp_path / "tiny.yaml"),
        "--epochs", "2", "--variants", "recipe", "gan", "--seeds", "1",
        "--real", str(tmp_path / "real/input"), str(tmp_path / "real/output"), "--samples", "sample_0001",
    ])  # fmt: skip
    page = (tmp_path / "to/quality.md").read_text()
    assert page in capsys.readouterr().out
    sets = ["held-out built-ins", "real, named samples", "real, all with cameras"]
    for where in [*sets, *(f"{each}, a view missing" for each in sets)]:
        assert f"## {where[0].upper()}{where[1:]}\n" in page
    figures = json.loads((tmp_path / "to/quality.json").read_text())
    runs = figures["runs"]
    assert {name: run["steps"] for name, run in runs.items()} == {"recipe-1": 4, "gan-1": 4}
    # One sample alone, and the two together, are not the same; the runs' maps differ.
    named, both = (runs["recipe-1"]["rows"][where]["albedo_mae"] for where in sets[1:])
    assert named != both and runs["gan-1"]["rows"][sets[0]]["l1"] != runs["recipe-1"]["rows"][sets[0]]["l1"]
    assert figures["baseline"].keys() == set(sets) and page.count(f"| {MEAN} |") == 6
    logged = [json.loads(line) for line in (tmp_path / "to/metrics.jsonl").read_text().splitlines()]
    assert {line["run"] for line in logged if "train/D_loss" in line} == {"gan-1"}
    assert Image.open(tmp_path / "to/quality.jpg").width == CELL * (1 + 3 * 4)  # a view; true maps, two runs'


def test_a_gan_starts_by_shares_of_the_run():
    assert "training.gan_start_epoch=18" in quality.own_fields("gan", 30)
    assert quality.own_fields("gan_early", 30)[-1] == "training.gan_start_epoch=2"
    assert quality.own_fields("recipe", 30) == []
