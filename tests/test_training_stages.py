"""A run in two stages: one schedule, one cursor, one folder; stopped anywhere it goes on to the bit."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neuropbr_dist.cluster import Environment
from neuropbr_dist.commands.train import config_of
from neuropbr_dist.config import OptimizerConfig, Stage, TrainConfig, load, with_fields
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference import load_generator
from neuropbr_dist.training.resume import changed_stages
from neuropbr_dist.training.schedule import Schedule
from neuropbr_dist.training.stages import open_run, set_up_run
from tests.drills.kill import newest_step, wait_until
from tests.support.staged_runs import STAGES, TAKEN, staged
from tests.support.train_runs import (
    SINGLE_PROCESS_SAVES,
    assert_same_run,
    logged_samples,
    metrics,
    resume,
    start,
    state,
    temporary_folder,
    times_seen,
    timings,
)

pytestmark = SINGLE_PROCESS_SAVES


@cache
def whole() -> Path:
    folder = temporary_folder() / "run"
    ended = staged(folder)
    assert ended.code == 0, ended.err
    (folder / "said").write_text(ended.out)
    return folder


# -- one run ---------------------------------------------------------------------------------


def test_the_cursor_counts_samples_throughout_and_no_batch_holds_two_stages():
    lines = logged_samples(whole())
    assert [sum(map(len, line["samples"].values())) for line in lines] == TAKEN
    assert [epoch for line in lines[:3] for epoch in line["samples"]] == ["1", "1", "2", "2"]
    assert [epoch for line in lines[3:] for epoch in line["samples"]] == ["3", "3", "4", "4", "4"]
    seen = times_seen(whole())
    assert all(counts == seen["1"] and set(counts.values()) == {1} for counts in seen.values())
    assert state(whole())["cursor"] == 20 and state(whole())["global_batch"] == 3


def test_one_schedule_with_each_stages_factor():
    warmup = Schedule(OptimizerConfig(g_lr=1e-3, scheduler_warmup_epochs=1, scheduler="none"), 1e-3)
    rates = {line["step"]: line["train/lr"] for line in metrics(whole()) if "train/lr" in line}
    assert rates[1] == warmup.at(0.8) and rates[2] == pytest.approx(1e-3)
    assert rates[4] == pytest.approx(0.5e-3), "the plateau starts anew, at half the rate"


def test_best_and_plateau_start_anew_with_a_stage():
    losses = [line["val/loss"] for line in metrics(whole()) if "val/loss" in line]
    assert len(losses) == 5  # before, and after each epoch
    assert state(whole())["best"] == min(losses[3:])
    assert all(part["best"] == min(losses[3:]) for part in state(whole())["plateau"].values())


def test_a_person_is_told_of_each_stage():
    said = (whole() / "said").read_text()
    assert "5 for training, 1 for validation, 16 and 32 px" in said
    assert "Stage 1 of 2: epochs 1 to 2, 16 px\n" in said
    assert "Stage 2 of 2: epochs 3 to 4, 32 px, learning rate x 0.5\n" in said
    assert "Batch: 4 = up to 2 x 2 on 1 rank(s)" in said and "Batch: 3 = up to 3 x 1 on 1 rank(s)" in said
    begun = [line for line in timings(whole()) if "stage" in line]
    assert [(line["step"], line["stage"]) for line in begun] == [(3, 2)]
    history = [json.loads(line) for line in (whole() / "history.jsonl").read_text().splitlines()]
    assert (history[0]["stage"], history[0]["stages"], history[0]["image_size"]) == (1, 2, 16)


def test_the_model_is_of_the_side_that_the_run_ends_with():
    config = load_generator(whole()).config
    assert config.data.image_size == 32 and config.training.stages == []


# -- stopped and resumed ---------------------------------------------------------------------


def test_stopped_before_at_and_after_an_edge_it_is_the_same_run(tmp_path):
    assert staged(tmp_path, "--stop-after-steps", "2").code == 0
    for stop in ("3", "4", "6"):
        ended = resume(tmp_path, "--stop-after-steps", stop)
        assert ended.code == 0 and f"after step {stop};" in ended.out, ended
    assert resume(tmp_path).code == 0
    assert [start["step"] for start in state(tmp_path)["starts"]] == [0, 2, 3, 4, 6]
    assert_same_run(whole(), tmp_path)


def test_killed_it_is_the_same_run(tmp_path):
    """Amid the first stage, then amid the second: steps after the last save are done again."""
    launch = staged(tmp_path, begin=start, training__save_every_n_steps=1, training__keep_latest=9)
    for steps in (2, 5):
        wait_until(launch, lambda steps=steps: newest_step(tmp_path) >= steps)
        for process in launch.processes:
            process.kill()
        launch.wait()
        if steps == 2:
            launch = staged(tmp_path, "--resume", "auto", begin=start)
    assert resume(tmp_path).code == 0
    assert state(tmp_path)["cursor"] == 20
    seen = times_seen(tmp_path)
    assert all(counts == seen["1"] for counts in seen.values())
    assert metrics(tmp_path) == metrics(whole())


@pytest.mark.drill
@pytest.mark.multiprocess
def test_each_sample_once_an_epoch_through_other_worlds_and_across_two_edges(tmp_path):
    """4, 2, 3 and 1 ranks, killed in each; the edges lie at steps 10 and 26."""
    edges = [
        {"until_epoch": 8, "image_size": 16, "global_batch_size": 4, "batch_size": 1},
        {"until_epoch": 24, "image_size": 32, "global_batch_size": 5, "batch_size": 1},
        {"until_epoch": 40, "image_size": 16, "global_batch_size": 7, "batch_size": 2},
    ]
    fields = {
        "training__stages": edges,
        "training__save_every_n_steps": 2,
        "training__val_every_n_epochs": 100,
    }
    lost, until = [], (4, 14, 24, 29)
    for world, steps in zip((4, 2, 3, 1), until, strict=True):
        launch = staged(tmp_path, "--resume", "auto", begin=start, world=world, **fields)
        wait_until(launch, lambda steps=steps: len(logged_samples(tmp_path)) >= steps)
        for process in launch.processes:
            process.kill()
        launch.wait()
        lost.append(len(logged_samples(tmp_path)) - newest_step(tmp_path))
    ended = staged(tmp_path, "--resume", "auto", world=3, **fields)
    assert ended.code == 0, ended.err
    assert [start["world_size"] for start in state(tmp_path)["starts"]] == [4, 2, 3, 1, 3]
    seen = times_seen(tmp_path)
    assert list(seen) == [str(epoch) for epoch in range(1, 41)]
    assert len(seen["1"]) == 5 and all(
        counts == seen["1"] and set(counts.values()) == {1} for counts in seen.values()
    )
    assert [sum(map(len, line["samples"].values())) for line in logged_samples(tmp_path)] == (
        [4] * 10 + [5] * 16 + [7] * 11 + [3]
    )


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize("words", [["--engine", "fsdp"], ["--ds", "zero2"], ["--ds", "zero3"]], ids=str)
def test_every_engine_goes_over_the_edge(tmp_path, words):
    """On two ranks past the edge, then on three: the plain run's losses, to float32's noise."""
    assert staged(tmp_path, *words, "--stop-after-steps", "4", world=2).code == 0
    ended = resume(tmp_path, world=3)
    assert ended.code == 0, ended.err
    assert logged_samples(tmp_path) == logged_samples(whole())
    for mine, theirs in zip(metrics(tmp_path), metrics(whole()), strict=True):
        for name in {"train/G_loss", "val/loss", "train/lr"} & theirs.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3), (theirs["step"], name)


# -- what a resume may change ----------------------------------------------------------------


def stages(*edges: dict) -> list[Stage]:
    return [Stage(**edge) for edge in edges]


def compared(now: list[Stage], cursor: int, saved=STAGES) -> list[str]:
    """What `changed_stages` finds for a run of five samples that has come to `cursor`."""

    def of(stages):
        return with_fields(TrainConfig(), training={"stages": list(stages), "epochs": stages[-1].until_epoch})

    order = SimpleNamespace(n=5)
    run = SimpleNamespace(cfg=of(now), stages=[SimpleNamespace(order=order)])
    return changed_stages(of(stages(*saved)), run, cursor, "--resume auto")


FIRST, SECOND = STAGES
LATER = {"until_epoch": 9, "image_size": 64, "global_batch_size": 2}


@pytest.mark.parametrize(
    "now, cursor",
    [
        ([FIRST, SECOND], 7), ([FIRST, LATER], 7), ([FIRST, LATER], 10), ([{**FIRST, "until_epoch": 3}, SECOND], 10),
        ([FIRST, {**SECOND, "until_epoch": 8}], 12), ([FIRST, {**SECOND, "batch_size": 3, "lr_scale": 2.0}], 12),
        ([FIRST, {**SECOND, "until_epoch": 3}, LATER], 12), ([FIRST, SECOND, LATER], 20), ([FIRST], 7),
    ],
)  # fmt: skip
def test_what_has_not_begun_and_where_the_present_stage_ends_may_change(now, cursor):
    assert compared(stages(*now), cursor) == []


@pytest.mark.parametrize(
    "now, cursor, named",
    [
        (
            [{**FIRST, "image_size": 20}, SECOND],
            11,
            "stage 1 .* has ended .epoch 2.* image_size = 20 .saved: 16.",
        ),
        ([SECOND], 11, "stage 1 .* has ended"),
        (
            [{**FIRST, "until_epoch": 1}, SECOND],
            7,
            "stage 1 .* has come to epoch 2 .* until_epoch = 1 .saved: 2.",
        ),
        ([FIRST], 11, "stage 2 .* has come to epoch 3 .* it is gone"),
    ],
)
def test_what_is_past_may_not(now, cursor, named):
    with pytest.raises(UserError, match=named):
        compared(stages(*now), cursor)


def test_what_a_step_takes_may_not_change_amid_a_stage():
    now = stages(FIRST, {**SECOND, "global_batch_size": 2, "image_size": 16})
    assert compared(now, 12) == [
        "stage 2's global batch 2 (saved: 3)", "stage 2's image_size 16 (saved: 32)"
    ]  # fmt: skip


def test_a_resume_takes_other_later_stages_and_refuses_other_past_ones(tmp_path):
    assert staged(tmp_path, "--stop-after-steps", "4").code == 0
    copy = shutil.copytree(tmp_path, tmp_path.parent / "copy", symlinks=True)
    past = resume(copy, "--set", f"training.stages={json.dumps([{**FIRST, 'image_size': 32}, SECOND])}")
    assert past.code == 2 and past.err.count("\n") == 1 and "stage 1 of training.stages has ended" in past.err
    later = resume(tmp_path, "--set", f"training.stages={json.dumps([FIRST, {**SECOND, 'until_epoch': 3}])}")
    assert later.code == 0, later.err
    assert state(tmp_path)["cursor"] == 15


# -- every choice of every stage, before the first step ----------------------------------------

EDGES = "[{until_epoch: 3, image_size: 256, batch_size: 8}, {until_epoch: 9, image_size: 2048}]"


def test_each_stage_has_a_memory_plan_batches_and_graphs_of_its_own():
    cfg = with_fields(config_of(["--set", f"training.stages={EDGES}"]), training={"precision": "bf16"})
    samples = open_run(cfg)
    env = Environment(launcher="none", world_size=1, local_world_size=1)
    made = set_up_run(cfg, env, torch.device("cuda"), samples, 24 * 2**30)
    assert [stage.setup.memory for stage in made.stages] == ["fast", "low"]
    assert [stage.setup.micro for stage in made.stages] == [(8, 1), (1, 1)]
    assert [stage.setup.replays for stage in made.stages] == [True, False]
    assert [stage.setup.samples.side for stage in made.stages] == [256, 2048]
    assert [s.global_batch_size for s in made.cfg.training.stages] == [8, 1]
    assert made.cfg.optimizer.scheduler_epochs == 9, "one schedule over all stages"
    with pytest.raises(
        UserError, match=r"training.stages, stage 2 \(2048 px\): 2048 px on this cuda device.*image_size = "
    ):
        set_up_run(cfg, env, torch.device("cuda"), samples, 12 * 2**30)


def test_refused_before_anything_is_loaded(tmp_path):
    second = {**SECOND, "image_size": 33}
    ended = staged(tmp_path / "run", training__stages=[FIRST, second])
    assert ended.code == 2 and ended.err.count("\n") == 1 and "Source:" not in ended.out
    assert "training.stages, stage 2 (33 px): image_size: pictures of 33 px" in ended.err
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_debug_looks_at_the_first_stage():
    from neuropbr_dist.training.debug import plain_settings

    cfg = with_fields(load("demo"), training={"stages": stages(*STAGES)})
    assert plain_settings(cfg, torch.device("cpu")).data.image_size == 16
