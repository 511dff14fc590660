"""`launch/benchmark.py plan`: from measured steps to hours."""

from __future__ import annotations

import re

import pytest

from benchmarks.plan import Rates, layers_of, planned, reckon, run, seen, with_count
from neuropbr_dist.commands.train import config_of
from neuropbr_dist.config import Stage, load, with_fields
from neuropbr_dist.data.open import open_samples
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.flops import sample_flops
from tests.support.distributed import ROOT

RATES = Rates.read()


def test_each_measured_step_is_given_back():
    """The card's to a few per cent; where the host is the limit, hosts differ."""
    for row in [*RATES.device, *RATES.host]:
        assert (ROOT / "benchmarks/results" / row["file"]).exists()
    for row in RATES.device:
        found = RATES.seconds(row["tflop"] * 1e12, 276, row["plan"], graphs=False)
        assert 1e3 * found == pytest.approx(row["ms"], rel=0.06), row
    for row in RATES.host:
        found = RATES.seconds(1e12, row["layers"], "fast", row["graphs"])
        assert 1e3 * found == pytest.approx(row["ms"], rel=0.25), row


def test_work_and_layers_of_the_measured_steps_are_the_networks():
    default, small = load("default"), load(str(ROOT / "benchmarks/configs/plane-256.yaml"))
    assert sample_flops(default, 2048).step(gan=True) / 1e12 == pytest.approx(348, rel=0.01)
    assert layers_of(default.model, gan=True) == 276 and layers_of(small.model, gan=False) == 118


def test_between_and_beyond_measured_sizes():
    assert 0.509 < RATES.mfu(1000e12, "low") < 0.58
    assert RATES.mfu(1e12, "low") == 0.509 and RATES.mfu(1e17, "low") == 0.58


def test_a_stage_takes_its_samples_times_what_each_was_measured_to_take():
    stages = "[{until_epoch: 5, image_size: 512}, {until_epoch: 7, image_size: 2048}]"
    fields = (
        f"training.stages={stages}",
        "training.gan_start_epoch=0",
        "training.cuda_graphs=off",
        "model.align=none",
    )
    words = [word for field in fields for word in ("--set", field)]
    cfg = config_of(words)
    samples = with_count(open_samples(with_fields(cfg, data={"builtin": True})), 1000)
    one, four = (planned(cfg, gpus, samples, 79.0) for gpus in (1, 4))
    small, large = (reckon(one, stage, RATES) for stage in one.stages)
    assert (small.samples, small.steps, large.samples, large.steps) == (5000, 5000, 2000, 2000)
    assert small.hours == pytest.approx(5000 * 0.2 / 3600, rel=0.25)
    assert large.hours == pytest.approx(2000 * 0.774 / 3600, rel=0.05)
    assert reckon(four, four.stages[1], RATES).hours == pytest.approx(large.hours / 4 / RATES.efficiency)
    assert seen(FakeRun(), one, one.stages[1]) == (10.0, 150 / 3600)


def hours(stage: Stage, flops: float, layers: int, epochs: int, gpus: int) -> float:
    """Of a stage of `recipe_large`: steps of equal micro-batches, all kept, none replayed as a graph."""
    share = stage.global_batch_size // gpus
    micro = min(stage.batch_size, share)
    seconds = share // micro * RATES.seconds(micro * flops, layers, "fast", graphs=False)
    rate = stage.global_batch_size / seconds * (RATES.efficiency if gpus > 1 else 1)
    return epochs * AN_EPOCH / rate / 3600


AN_EPOCH = 2048 * 32


def test_the_hundred_gpu_hours_on_the_page_follow_from_the_preset():
    cfg = load("recipe_large")
    n = cfg.data.builtin_count
    assert (n - round(cfg.data.val_ratio * n)) * cfg.data.renders_per_epoch == AN_EPOCH
    page = (ROOT / "docs/training.md").read_text().split("## A hundred GPU-hours")[1]
    *rows, whole = [
        line.strip("| ").split("|") for line in page.splitlines() if re.match(r"\| (\d+ px|in all)", line)
    ]
    totals, first = {1: 0.0, 8: 0.0, 64: 0.0}, 0
    for stage, row in zip(cfg.training.stages, rows, strict=True):
        gan = first + 1 >= cfg.training.gan_start_epoch
        assert gan or cfg.training.gan_start_epoch > stage.until_epoch, "it begins with a stage"
        flops = sample_flops(cfg, stage.image_size).step(gan=gan)
        layers, epochs = layers_of(cfg.model, gan), stage.until_epoch - first
        taken = {gpus: hours(stage, flops, layers, epochs, gpus) for gpus in totals}
        totals = {gpus: totals[gpus] + taken[gpus] for gpus in totals}
        shown = [cell.strip() for cell in row[1:]]
        assert row[0].startswith(f"{stage.image_size} px") and f"to {stage.until_epoch} " in row[0]
        assert shown[:2] == [str(stage.global_batch_size), f"{epochs * AN_EPOCH:,}"]
        assert shown[2:] == [f"{value:.1f}" for value in taken.values()], stage
        first = stage.until_epoch
    assert [cell.strip() for cell in whole[3:]] == [f"{value:.1f}" for value in totals.values()]
    assert 90 < totals[1] < 110


class FakeRun:
    """Two log lines of the second stage, amid others."""

    metrics = (
        {"samples": 5000, "speed/samples_per_s": 2.0}, {"samples": 6000, "speed/samples_per_s": 20.0},
        {"samples": 6000}, {"samples": 6500, "speed/samples_per_s": 5.0},
    )  # fmt: skip


def test_it_prints_a_row_a_stage(capsys):
    stages = "[{until_epoch: 1, image_size: 32, batch_size: 2}, {until_epoch: 2, image_size: 64}]"
    run(["--config", "demo", "--stages", stages, "--gpus", "8", "--samples", "100"])
    head, first, second, total, beyond = capsys.readouterr().out.splitlines()
    assert "GiB/rank" in head and first.split()[:3] == ["1", "1-1", "32"] and "16 = 1 x 2 a rank" in first
    assert (
        second.split()[:3] == ["2", "2-2", "64"] and "hours of steps" in total and "never measured" in beyond
    )


@pytest.mark.parametrize(
    "words, named", [("--gpus 0", "--gpus 0"), ("--stages [{until_epoch:1,x:1}]", "stage 1")]
)
def test_bad_input_is_refused_in_one_line(words, named):
    with pytest.raises(UserError, match=named):
        run.__wrapped__(words.split(), None)
