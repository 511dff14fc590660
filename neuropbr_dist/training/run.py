"""Put a training run together: where, from which checkpoint, on what data, on which engine."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from neuropbr_dist.checkpoint import (
    BEST,
    LATEST,
    AsyncSaver,
    Checkpoint,
    RunLock,
    SaveTiming,
)
from neuropbr_dist.cluster import (
    Environment,
    StopFlag,
    StopReason,
    allocation_end,
    detect,
    last_resort,
    pick_device,
    process_group,
    refuse_differences,
)
from neuropbr_dist.config import TrainConfig, to_dict, to_yaml
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import write_text
from neuropbr_dist.logs import to_console
from neuropbr_dist.monitor import Console, RunLog
from neuropbr_dist.ranks import on_rank_0
from neuropbr_dist.training.data import open_samples
from neuropbr_dist.training.ema import WeightAverage
from neuropbr_dist.training.engines import (
    backbone_weights,
    build_networks,
    check_memory,
    compiles_losses,
    engine_of,
    memory_plan,
)
from neuropbr_dist.training.facts import count_parameters, describe, facts, start_facts
from neuropbr_dist.training.loop import Run, Trainer
from neuropbr_dist.training.objective import Objective
from neuropbr_dist.training.profile import StepProfiler
from neuropbr_dist.training.resume import delete_run, fresh_or_resumed, refuse_data_change, run_folder
from neuropbr_dist.training.start import Start
from neuropbr_dist.training.state import Progress, restore, saved_fragments
from neuropbr_dist.training.timings import StartUp, note_timing

log = logging.getLogger(__name__)

LAST_SAVE_S = 120.0
"""For a save in flight when an error ends the run; without end if another rank is gone."""
REQUEUE = "requeue"  # marker in the run's folder: stopped from outside, wants to go on
TRACES = "flight_recorder"  # what NCCL did last on each rank, dumped in the run's folder when a collective times out


def train(cfg: TrainConfig, start: Start) -> StopReason | None:
    """Train `cfg` to its end, or to a stop; return why it stopped, if it did."""
    start_up = StartUp()
    start_up.mark("imports")
    env = detect()
    device = pick_device(cfg.training.device, env)
    to_console(env.rank, outlive=True, default=True)
    console = Console(env.rank == 0)
    traces = Path(cfg.training.checkpoint_dir) / TRACES
    with ExitStack() as stack:
        if env.distributed:
            stack.enter_context(process_group(env, device, cfg.training.timeout_minutes, traces))
            start_up.mark("process group")
        lock = stack.enter_context(RunLock(run_folder(cfg, start)))
        cfg, checkpoint = fresh_or_resumed(cfg, start)
        if checkpoint is not None:
            stack.enter_context(checkpoint)
            device = pick_device(cfg.training.device, env)
        engines = {engine_of(cfg, env, part) for part in ("generator", "discriminator")}
        if not env.distributed and engines != {"single"}:
            stack.enter_context(process_group(env, device, cfg.training.timeout_minutes, traces))
        start_up.mark("checkpoint found and verified" if checkpoint else "run folder")
        end = on_rank_0(allocation_end)
        stack.enter_context(last_resort(end, partial(mark_requeue, cfg, env, str(StopReason.TIME_LIMIT))))
        run = stack.enter_context(assemble(cfg, start, env, device, console, checkpoint, lock, start_up, end))
        reason = Trainer(run).train()
        mark_end(run, reason)
    return reason


# -- putting it together -------------------------------------------------------------------


@contextmanager
def assemble(
    cfg: TrainConfig,
    start: Start,
    env: Environment,
    device: torch.device,
    console: Console,
    checkpoint: Checkpoint | None,
    lock: RunLock,
    start_up: StartUp,
    end: float | None,
) -> Iterator[Run]:
    """Data, networks, state and log files of the run; closed at the end."""
    t = cfg.training
    torch.use_deterministic_algorithms(t.deterministic)
    samples = open_samples(cfg, env, fits=lambda size: check_memory(cfg, size, env, device))
    if t.global_batch_size is None:
        t.global_batch_size = t.batch_size * env.world_size
    if cfg.optimizer.scheduler_epochs is None:
        cfg.optimizer.scheduler_epochs = t.epochs
    backbone = backbone_weights(cfg) if checkpoint is None else None
    refuse_differences(facts(cfg, samples), socket.gethostname())
    if checkpoint is not None:
        refuse_data_change(checkpoint, cfg, samples, start.allow_data_change)
    start_up.mark("data set")
    memory = memory_plan(cfg, samples.source.size, env, device)
    networks = build_networks(cfg, env, device, backbone, memory)
    start_up.mark("networks")
    objective = Objective(cfg, compiles_losses(cfg, device))
    ema = WeightAverage(networks["generator"], t.ema_decay) if t.ema_decay is not None else None
    progress = restore(checkpoint, networks, ema) if checkpoint else Progress()
    if checkpoint:
        start_up.mark("load")
    progress.global_batch, progress.data = t.global_batch_size, samples.fingerprint
    progress.lives.append(
        {"step": progress.step, "world_size": env.world_size, "engine": engine_of(cfg, env)}
    )
    folder = Path(t.checkpoint_dir)
    if start.overwrite:  # not before all else is known to be good
        on_rank_0(partial(delete_run, folder))
    on_rank_0(partial(write_config, cfg, folder))
    wandb = {"project": t.wandb_project, "name": t.wandb_run_name, "config": to_dict(cfg)}
    run_log = RunLog(
        folder, tensorboard=t.use_tensorboard, wandb=wandb if t.use_wandb else None, enabled=env.rank == 0
    )
    run_log.cut_back(progress.step or -1)  # at step 0 the first validation is done again
    saver = AsyncSaver(
        folder,
        keep_latest=t.keep_latest,
        lock=lock,
        timeout=timedelta(minutes=t.timeout_minutes),
        on_saved=partial(saved, console, folder),
    )
    saver.prepare(saved_fragments(networks, ema))
    parameters = count_parameters(cfg)
    describe(cfg, env, device, parameters, memory)
    run_log.started(progress.step, start_facts(cfg, env, device, samples, parameters, memory))
    run_log.text(progress.step, {"config": to_yaml(cfg)})
    profiler = None
    if start.profile and env.rank == 0:
        profiler = StepProfiler(start.profile, folder / "profile", device)
    # Not before: a rank that waits in the set-up for a dead one would wait on, and there is nothing to save yet.
    stop = StopFlag()
    start_up.mark("logs")
    try:
        yield Run(
            cfg=cfg, env=env, device=device, source=samples.source, train=samples.train, val=samples.val,
            networks=networks, objective=objective, progress=progress, saver=saver, log=run_log,
            console=console, stop=stop, ema=ema, start_up=start_up, end=end, stop_after_epochs=start.stop_after_epochs,
            stop_after_steps=start.stop_after_steps, profiler=profiler,
            saved_at=progress.step if is_newest(checkpoint, folder) else -1,
        )  # fmt: skip
    except UserError as error:
        run_log.ended(progress.step, f"error: {error}")
        saver.leave(LAST_SAVE_S)
        raise
    finally:
        console.close()
        run_log.close()
    saver.close()


def is_newest(checkpoint: Checkpoint | None, folder: Path) -> bool:
    """Whether it is what the run's folder calls `latest`. Collective: a rank that saves alone waits for ever,
    and on a shared file system each may see an old name for a while."""
    return on_rank_0(
        lambda: checkpoint is not None and (folder / LATEST).resolve() == checkpoint.path.resolve()
    )


def write_config(cfg: TrainConfig, folder: Path) -> None:
    """Write the resolved configuration into the run's folder; a requeue marker has had its effect."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", to_yaml(cfg))
        (folder / REQUEUE).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: can't write there: {error}") from error


def saved(console: Console, folder: Path, path: Path, links: Sequence[str], timing: SaveTiming) -> None:
    """A save is on disk: on rank 0, in the writing thread."""
    say_saved(console, folder, links)
    note_timing(folder, {"step": int(path.name.split("_")[1].split("-")[0]), "save": timing.as_dict()})


def say_saved(console: Console, folder: Path, links: Sequence[str]) -> None:
    """The guide's lines, once the save is on disk."""
    for link in links:
        if link == BEST:
            console.saved_best(folder / link)
        elif link != LATEST or len(links) == 1:
            console.saved(folder / link)


def mark_end(run: Run, reason: StopReason | None) -> None:
    """Say how it ended; a stop from outside leaves a marker that the batch script reads."""
    folder = Path(run.cfg.training.checkpoint_dir)
    run.log.ended(run.progress.step, str(reason or "finished"))
    if reason is None:
        log.info(f"Done: {run.progress.step} steps, {folder}")
        return
    if reason.requeues:
        mark_requeue(run.cfg, run.env, run.stop.signal or str(reason))
    log.info(f"Stopped ({reason}) after step {run.progress.step}; go on with --resume auto")


def mark_requeue(cfg: TrainConfig, env: Environment, reason: str) -> None:
    """Leave the marker that asks scripts and launchers to start the run again."""
    if env.rank == 0:
        write_text(Path(cfg.training.checkpoint_dir) / REQUEUE, f"{reason}\n", durable=True)
