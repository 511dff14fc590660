"""The run's folder: what a start must not overwrite, and the marks that it leaves besides logs and checkpoints."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path

from neuropbr_dist.checkpoint import (
    BEST,
    LATEST,
    AsyncSaver,
    Checkpoint,
    RunLock,
    SaveTiming,
    clear,
    find,
)
from neuropbr_dist.cluster import Environment, StopReason, launcher_patience
from neuropbr_dist.config import TrainConfig, to_dict, to_yaml
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import realpath, remove_leftovers, write_text, writing
from neuropbr_dist.monitor import Console, RunLog
from neuropbr_dist.monitor.look_files import FOLDER as LOOKS
from neuropbr_dist.monitor.run_logs import LOGS, METRICS, TIMINGS
from neuropbr_dist.ranks import is_rank_0, on_rank_0

log = logging.getLogger(__name__)

PAGE = "report.html"  # the run page, if `launch/report.py` wrote one
REQUEUE = "requeue"  # stopped from outside, wants to go on: scripts and launchers read it
OWN_SUFFIXES = ("", ".json", ".jsonl", ".yaml")  # a page or an export may be in the making beside the run
TRACES = "flight_recorder"  # what NCCL did last on each rank, dumped when a collective times out


def check_unused(folder: Path, overwrite: bool) -> None:
    """Raise a UserError rather than start over another run's files unasked. Collective."""
    if not overwrite and on_rank_0(lambda: bool(find(folder)) or (folder / METRICS).exists()):
        raise UserError(
            f"{folder} holds a run; go on with it by --resume auto, delete it by --overwrite, "
            "or name another folder by --checkpoint-dir"
        )


def delete_run(folder: Path) -> None:
    """Delete what a run has left in its folder, for `--overwrite`. For one process."""
    clear(folder)
    events = (folder / "logs").glob("events.*")
    for path in (*(folder / name for name in (*LOGS, "wandb_id", PAGE)), *events):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / LOOKS, ignore_errors=True)


def is_newest(checkpoint: Checkpoint, folder: Path) -> bool:
    """Return whether it is what the run's folder calls `latest`. Collective: a rank that saves alone waits for ever,
    and on a shared file system each may see an old name for a while."""
    return on_rank_0(lambda: realpath(folder / LATEST) == realpath(checkpoint.path))


def write_config(cfg: TrainConfig, folder: Path) -> None:
    """Write the run's configuration into its folder; a requeue marker has had its effect, and what a killed run
    was just writing goes."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, OWN_SUFFIXES)
        remove_leftovers(folder / LOOKS, deep=True)
        write_text(folder / "config.yaml", to_yaml(cfg), durable=True)
        (folder / REQUEUE).unlink(missing_ok=True)


def open_folder(
    cfg: TrainConfig, step: int, lock: RunLock, env: Environment, *, overwrite: bool
) -> tuple[RunLog, Console, AsyncSaver]:
    """Open what writes into a run's folder, from `step` on. Collective.

    Args:
        lock: held on the folder.
        overwrite: delete the run that the folder holds first.
    """
    t, folder, first = cfg.training, Path(cfg.training.checkpoint_dir), env.rank == 0
    if overwrite:
        on_rank_0(partial(delete_run, folder))
    on_rank_0(partial(write_config, cfg, folder))
    wandb = {"project": t.wandb_project, "name": t.wandb_run_name, "config": to_dict(cfg)}
    run_log = RunLog(
        folder, tensorboard=t.use_tensorboard, wandb=wandb if t.use_wandb else None, enabled=first,
        check=lock.check,
    )  # fmt: skip
    run_log.cut_back(step or -1)  # at step 0 the first validation is done again
    console = Console(first)
    told = partial(saved, console, run_log, folder, launcher_patience(env.launcher))
    timeout = timedelta(minutes=t.timeout_minutes)
    saver = AsyncSaver(folder, keep_latest=t.keep_latest, lock=lock, timeout=timeout, on_saved=told)
    return run_log, console, saver


def saved(
    console: Console,
    run_log: RunLog,
    folder: Path,
    patience: float | None,
    path: Path,
    links: Sequence[str],
    timing: SaveTiming,
) -> None:
    """Note that a save is on disk: say so in the guide's lines, and write its timing. On rank 0, in the writing thread.

    Args:
        patience: seconds that the launcher gives a stop; None: without end.
    """
    seconds = timing.held_s + timing.behind_s
    if patience is not None and seconds > patience / 2:
        log.warning(
            f"the save took {seconds:.0f} s, and the launcher kills ranks {patience:.0f} s after SIGTERM: give it more "
            "(torchrun --shutdown-timeout=600, or TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600; torch 2.12 or later)"
        )
    for link in links:
        if link == BEST:
            console.saved_best(folder / link)
        elif link != LATEST or len(links) == 1:
            console.saved(folder / link)
    step = int(path.name.split("_")[1].split("-")[0])
    run_log.line(TIMINGS, {"step": step, "save": asdict(timing)})


def mark_end(folder: Path, step: int, reason: StopReason | None, signal: str | None) -> None:
    """Say how the run ended after `step`; a stop from outside leaves a marker that the batch script reads.

    Args:
        signal: that this rank got, by name.
    """
    if reason is None:
        log.info(f"Done: {step} steps, {folder}")
        return
    if reason.requeues:
        mark_requeue(folder, signal or str(reason))
    log.info(f"Stopped ({reason}) after step {step}; go on with --resume auto")


def mark_requeue(folder: Path, why: str) -> None:
    """Leave the marker that asks scripts and launchers to start the run again."""
    if is_rank_0():
        write_text(folder / REQUEUE, f"{why}\n", durable=True)
