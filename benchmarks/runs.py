"""Runs of `launch/train.py` that a measurement starts: their words, and how fast they were."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.ranks import ROOT, Launch, run_all
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.errors import UserError
from neuropbr_dist.monitor.run_logs import HISTORY, METRICS, run_log


def gpus() -> list[int]:
    """Return the GPUs' indices; a CPU counts as one."""
    return list(range(torch.cuda.device_count())) or [0]


TRAIN = ROOT / "launch" / "train.py"


def training(folder: Path, fields: Overrides, sets: Sequence[str], *more: str, ranks: int = 1) -> Launch:
    """Return one run into `folder`, which it overwrites; fields of the command line come last and win.

    Args:
        sets: assignments, as `--set` takes them.
        more: further words.
    """
    assignments = [word for assignment in sets for word in ("--set", assignment)]
    own = ["--checkpoint-dir", str(folder), "--overwrite", *more]
    return Launch(name=folder.name, argv=[str(TRAIN), *own, *assignments, *fields.argv()], ranks=ranks)


def ms_per_step(folder: Path) -> float:
    """Return the median over a run's log lines; not the first ones."""
    lines = run_log(folder, METRICS).read()
    speeds = [line["speed/ms_per_step"] for line in lines if "speed/ms_per_step" in line]
    return statistics.median(speeds[len(speeds) // 3 :])


def seconds_per_epoch(timings: Sequence[Launch], runs: Path) -> list[float]:
    """Run `timings` into their folders in `runs`, each with its GPUs to itself, and return how long an epoch of each takes.

    Raises:
        UserError: one failed.
    """
    faults: dict[str, str] = {}
    run_all(timings, gpus(), runs, lambda one, fault: faults.update({one.name: fault}), float("inf"))
    for name, fault in faults.items():
        if fault:
            raise UserError(f"the run to be timed failed ({name}): {fault}")
    found = []
    for timing in timings:
        folder = runs / timing.name
        ms, start = ms_per_step(folder), run_log(folder, HISTORY).read()[0]
        found.append(ms / 1000 * start["train_samples"] / start["global_batch"])
        print(
            f"{ms:.1f} ms a step, {found[-1]:.1f} s an epoch of {start['train_samples']} samples", flush=True
        )
    return found
