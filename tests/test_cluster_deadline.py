"""The end of the allocation: asked of Slurm, and how early a run stops before it."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from neuropbr_dist.cluster import Deadline, Every, allocation_end, last_resort
from neuropbr_dist.cluster.deadline import ENDING_S, LAST_RESORT_S
from tests.support import train_runs
from tests.support.forked import call

pytestmark = train_runs.SINGLE_PROCESS_SAVES


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def squeue(folder: Path, answer: str) -> dict[str, str]:
    """An environment whose `squeue` answers so, given the right words."""
    folder.mkdir(exist_ok=True)
    program = folder / "squeue"
    program.write_text(f'#!/bin/sh\n[ "$*" = "--noheader --jobs 7 --format %e" ] && echo "{answer}"\n')
    program.chmod(0o755)
    return {"SLURM_JOB_ID": "7"}


def test_the_end_comes_from_slurms_variable_or_squeue(tmp_path, monkeypatch):
    assert allocation_end({}) is None
    assert allocation_end({"SLURM_JOB_END_TIME": "9000000000", "SLURM_JOB_ID": "7"}) == 9000000000
    env = squeue(tmp_path, "2026-11-24T12:05:00")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert allocation_end(env) == datetime(2026, 11, 24, 12, 5).timestamp()
    assert allocation_end(env | {"SLURM_JOB_END_TIME": "1000000000"}) == allocation_end(env)


@pytest.mark.parametrize("answer", ["", "NONE", "N/A", "slurm_load_jobs error"])
def test_no_answer_is_no_end(tmp_path, monkeypatch, answer):
    env = squeue(tmp_path, answer)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert allocation_end(env) is None


def test_no_slurm_programs_are_no_end(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert allocation_end({"SLURM_JOB_ID": "7"}) is None


def stops_at(end: float, step: float, pause: float = 0.0, save: float = 5.0) -> float:
    """Clock time of the stop of a run whose steps take `step` seconds, its first validation `pause`."""
    clock = Clock()
    deadline = Deadline(end, ask=lambda: end, now=clock)
    deadline.pause(pause)
    while not deadline.reached(save):
        clock.now += step
    return clock.now


def test_the_margin_follows_the_runs_own_steps_saves_and_validations():
    margin = 2 * 2 + 2 * 5 + ENDING_S
    assert stops_at(2000, step=2) == 2000 - margin
    assert stops_at(2000, step=2, pause=30) == 2000 - margin - 30
    assert stops_at(2000, step=2, save=45) == 2000 - margin - 2 * 40


def test_a_slow_first_step_is_forgotten():
    """It compiles; fifty ordinary steps later the margin is theirs."""
    clock = Clock()
    deadline = Deadline(5000, ask=lambda: 5000, now=clock)
    for step in [110.0] + [1.0] * 50:
        assert not deadline.reached(5)
        clock.now += step
    assert deadline.margin(5) == 2 * 1 + 2 * 5 + ENDING_S


def test_an_end_that_was_moved_moves_the_stop():
    clock, asked = Clock(), []
    deadline = Deadline(1100, ask=lambda: asked.append(clock.now) or 1500, now=clock)
    while not deadline.reached(1):
        clock.now += 1
    assert clock.now == 1500 - (2 + 2 + ENDING_S)
    assert asked == [1100 - (2 + 2 + ENDING_S), clock.now]  # not at every step


def test_no_end_never_stops():
    assert not Deadline(None).reached(1)


def test_every_so_many_minutes():
    clock = Clock()
    every = Every(2, now=clock)
    clock.now += 119
    assert not every.due()
    clock.now += 1
    assert every.due() and not every.due()
    clock.now += 100
    every.met()  # saved for another reason
    clock.now += 119
    assert not every.due()
    assert not Every(None, now=clock).due()


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_stops_in_time_and_asks_to_be_requeued(tmp_path, world):
    """The allocation has 40 s left: as no save is measured yet, that is too little."""
    env = {"SLURM_JOB_END_TIME": str(int(time.time()) + 40)}
    ended = train_runs.run(tmp_path, world=world, env=env)
    assert ended.code == 0, ended.err
    assert "Stopped (time limit) after step" in ended.out
    assert (tmp_path / "requeue").read_text() == "time limit\n"
    stopped = train_runs.state(tmp_path)["step"]
    assert stopped <= 2
    ended = train_runs.resume(tmp_path)
    assert ended.code == 0 and "Done: 10 steps" in ended.out, ended
    assert not (tmp_path / "requeue").exists()


@pytest.mark.multiprocess
def test_a_run_that_hangs_leaves_before_its_allocation_ends(uninterrupted, stopped, tmp_path):
    """With a marker for the batch script, and in good order: the last save is gone on from."""
    (tmp_path / "hang.py").write_text("import time\ntime.sleep(1000)\n")
    hanging = ["--set", f"loss.custom_module={tmp_path}/hang.py", "--set", "loss.custom={hang: 1.0}"]
    words = ["--resume", "auto", "--checkpoint-dir", stopped, *hanging]
    env = {"SLURM_JOB_END_TIME": str(int(time.time() + LAST_RESORT_S + 8))}
    ended = train_runs.command(*words, world=2, env=env)
    assert (
        ended.code == 0 and ended.err.count("the run hangs: leaving now, the last checkpoint stands\n") == 2
    )
    assert (stopped / "requeue").read_text() == "time limit\n"
    assert train_runs.resume(stopped).code == 0
    train_runs.assert_same_run(uninterrupted, stopped)


def test_an_end_that_was_moved_moves_the_last_resort():
    told = []
    with last_resort(
        time.time() + LAST_RESORT_S + 0.2, lambda: told.append("left"), ask=lambda: time.time() + 1000
    ):
        time.sleep(0.5)
    assert told == []


def test_the_last_resort_leaves_even_if_its_marker_cannot_be_written():
    """The folder may be gone."""
    code = (
        "import time; from neuropbr_dist.cluster import last_resort\n"
        "def leaving(): raise FileNotFoundError('requeue')\n"
        "with last_resort(time.time(), leaving, ask=lambda: None): time.sleep(60)\n"
    )
    ended = call(code)
    assert ended.code == 0 and "the run hangs: leaving now" in ended.err


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_saves_every_so_many_minutes(tmp_path, world):
    """At once, that is at every boundary; each save with its line in `timings.jsonl`."""
    ended = train_runs.run(
        tmp_path, world=world, training__save_every_n_minutes=1e-9, training__keep_latest=100
    )
    assert ended.code == 0, ended.err
    steps = [int(path.name.removeprefix("step_")) for path in sorted(tmp_path.glob("step_*"))]
    assert steps == list(range(1, 11))
    timings = train_runs.timings(tmp_path)
    assert [line["step"] for line in timings if "save" in line] == steps
    assert all(line["save"]["bytes"] > 10_000 for line in timings if "save" in line)
    (start,) = [line["start"] for line in timings if "start" in line]
    assert {"imports", "data set", "networks", "first batch", "first step"} <= start.keys()


@pytest.mark.multiprocess
def test_ranks_share_a_replicated_save(tmp_path):
    """Under DDP each rank writes its half; whole tensors come out."""
    for world, engine in ((1, "single"), (2, "ddp")):
        ended = train_runs.run(tmp_path / engine, "--engine", engine, "--stop-after-steps", "1", world=world)
        assert ended.code == 0, ended.err
        assert "Warning" not in ended.out + ended.err
    sizes: dict[str, int] = {}
    for file in (tmp_path / "ddp" / "latest").glob("shard_*.bin"):
        rank = file.name.split("_")[1]
        sizes[rank] = sizes.get(rank, 0) + file.stat().st_size
    assert abs(sizes["00000"] - sizes["00001"]) <= 8
    one, two = train_runs.tensors(tmp_path / "single"), train_runs.tensors(tmp_path / "ddp")
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in two.items()}
    assert all((one[n].double() - two[n].double()).abs().max() < 1e-3 for n in one)
