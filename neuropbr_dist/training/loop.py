"""The loop: steps, log lines, validations, saves, in the order of the sample cursor."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from neuropbr_dist.checkpoint import BEST, LATEST, AsyncSaver, epoch_name, step_name
from neuropbr_dist.cluster import Deadline, Environment, Every, StopFlag, StopReason
from neuropbr_dist.config import TrainConfig, to_yaml
from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.device import to_device
from neuropbr_dist.data.loader import TrainingSlots, validation_slots
from neuropbr_dist.data.order import SampleOrder, micro_batches
from neuropbr_dist.data.sources import Entry, Source
from neuropbr_dist.monitor import Console, Meter, RunLog
from neuropbr_dist.parallel import Network
from neuropbr_dist.ranks import all_gather_object, broadcast_object
from neuropbr_dist.training.averages import Averages
from neuropbr_dist.training.data import batches_of
from neuropbr_dist.training.ema import WeightAverage
from neuropbr_dist.training.engines import precision_of
from neuropbr_dist.training.faults import FaultWatch
from neuropbr_dist.training.flops import matmul_flops, sample_flops
from neuropbr_dist.training.objective import Objective
from neuropbr_dist.training.profile import StepProfiler
from neuropbr_dist.training.sample_log import SampleLog
from neuropbr_dist.training.schedule import Schedule
from neuropbr_dist.training.state import Progress, saved_fragments, snapshot
from neuropbr_dist.training.step import StepReport, gan_step
from neuropbr_dist.training.timings import StartUp, note_timing
from neuropbr_dist.training.validation import validate

log = logging.getLogger(__name__)

LOOKS = 2  # validation samples kept as pictures: the first ones of rank 0's share, so always the first of all


@dataclass(kw_only=True)
class Run:
    """Everything a training run is made of, put together by `setup`."""

    cfg: TrainConfig
    env: Environment
    device: torch.device
    source: Source
    train: Sequence[Entry]
    val: Sequence[Entry]
    networks: dict[str, Network]
    objective: Objective
    progress: Progress
    saver: AsyncSaver
    log: RunLog
    console: Console
    stop: StopFlag
    ema: WeightAverage | None = None
    start_up: StartUp = field(default_factory=StartUp)
    end: float | None = None
    """Of the allocation, Unix seconds."""
    stop_after_epochs: int | None = None
    stop_after_steps: int | None = None
    profiler: StepProfiler | None = None
    """Of this rank, if it traces steps."""
    saved_at: int = -1
    """Step of the newest save; -1: none, or another folder's."""


class Trainer:
    """Drives a `Run` from its progress to its end, or to a stop."""

    def __init__(self, run: Run) -> None:
        self.run, cfg = run, run.cfg
        t = cfg.training
        self.order = SampleOrder(len(run.train), run.progress.global_batch, t.epochs, t.seed)
        self.micro = micro_batches(run.progress.global_batch, run.env.world_size, t.batch_size)
        self.schedules = {
            "generator": Schedule(cfg.optimizer, cfg.optimizer.g_lr),
            "discriminator": Schedule(cfg.optimizer, cfg.optimizer.d_lr),
        }
        for part, state in run.progress.plateau.items():
            self.schedules[part].load(state)
        self.faults = FaultWatch(t.max_skipped_steps)
        self.sample_log: SampleLog | None = None
        if t.log_samples and run.env.rank == 0:
            self.sample_log = SampleLog(run.saver.folder, self.order, run.train, run.progress.step)
        first = run.env.rank == 0  # its clock counts for all
        self.deadline = Deadline(run.end if first else None)
        self.save_clock = Every(t.save_every_n_minutes if first else None)
        self.flops, peak = None, None
        if first and run.device.type == "cuda":  # a CPU's cores are shared: its ceiling says little
            self.flops = sample_flops(cfg, run.source.size)
            peak = matmul_flops(run.device, precision_of(cfg, run.device))
        self.meter = Meter(run.device, peak)
        self.averages = Averages(run.device)
        self.saved_at = run.saved_at
        self.step_epoch = 0
        self.lr = self.d_lr = 0.0

    # -- progress --------------------------------------------------------------------------

    # Epochs are counted from 1, everywhere a person sees them: epoch n is the n-th, what is measured
    # or saved after it carries n, and 0 is before training.

    @property
    def epochs_done(self) -> int:
        return self.order.epoch_of(self.run.progress.cursor)

    @property
    def gan_on(self) -> bool:
        """Whether the step at hand trains the discriminator too."""
        started = self.epochs_done + 1 >= self.run.cfg.training.gan_start_epoch
        return "discriminator" in self.run.networks and started

    def wanted_stop(self) -> StopReason | None:
        """Why to stop at this boundary although the run isn't over; the same on every rank."""
        run = self.run
        if run.saver.failed or run.log.failure:  # not on all ranks at a time; `finish` raises on all
            run.stop.request(StopReason.FAILED_WRITE)
        if self.deadline.reached(run.saver.expected):
            run.stop.request(StopReason.TIME_LIMIT)
        if self.save_clock.due():
            run.stop.request_save()
        if reason := run.stop.agreed():
            return reason
        if run.stop_after_steps is not None and run.progress.step >= run.stop_after_steps:
            return StopReason.AFTER_STEPS
        if run.stop_after_epochs is not None and self.epochs_done >= run.stop_after_epochs:
            return StopReason.AFTER_EPOCHS
        return None

    # -- the loop --------------------------------------------------------------------------

    def train(self) -> StopReason | None:
        """Run to the end; returns why it stopped before, if it did."""
        run, p = self.run, self.run.progress
        if p.step == 0:
            self.validation(figures=False)
            run.start_up.mark("first validation")
        with self.batches() as batches:
            reason = self.steps(batches)
            self.finish(reason)  # the loader's end can wait, a save can't
        return reason

    def steps(self, batches: Iterator[MicroBatch]) -> StopReason | None:
        """All that is between the first step and the last save; returns why it stopped early, if it did."""
        run, p, reason = self.run, self.run.progress, None
        self.start_epoch()
        self.meter.restart()
        while p.cursor < self.order.total_samples and (reason := self.wanted_stop()) is None:
            before = self.epochs_done
            if run.profiler is not None:
                run.profiler.before(p.step + 1)
            self.step(batches)
            if run.profiler is not None:
                run.profiler.after(p.step)
            if run.start_up.open:
                self.started_up()
            due = p.step % run.cfg.training.log_every_n_steps == 0
            ended = self.epochs_done > before
            if due or ended or p.cursor >= self.order.total_samples:
                self.log_step()
            if ended:
                self.end_epoch(before)
                self.start_epoch()
            elif self.save_due():
                self.save([LATEST])
        return reason

    def started_up(self) -> None:
        """After the first step of this life: how long it took to get here."""
        run = self.run
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        run.start_up.mark("first step")
        run.start_up.open = False
        log.info(str(run.start_up))
        if run.env.rank == 0:
            note_timing(run.saver.folder, {"step": run.progress.step, "start": run.start_up.phases})

    def batches(self) -> AbstractContextManager[Iterator[MicroBatch]]:
        run, t = self.run, self.run.cfg.training
        slots = TrainingSlots(self.order, run.progress.cursor, run.env.world_size, run.env.rank, t.batch_size)
        data = run.cfg.data
        augmentation = Augmentation(t.seed, data.augment_flips, data.augment_rotations)
        return batches_of(data, run.source, run.train, slots, run.device, augmentation=augmentation)

    def step(self, batches: Iterator[MicroBatch]) -> None:
        run, p, cfg = self.run, self.run.progress, self.run.cfg
        samples, self.step_epoch = self.order.batch_size_at(p.cursor), self.epochs_done
        with self.meter.waiting():
            host = [next(batches) for _ in range(self.micro.per_step)]
        run.start_up.mark("first batch")
        batch = [to_device(micro, samples, cfg.transform, run.device) for micro in host]
        self.set_learning_rates((p.cursor + samples) / self.order.n)
        if has_dropout(cfg):  # keyed by step and rank: nothing to save
            torch.manual_seed(hash((cfg.training.seed, p.step, run.env.rank)) % 2**63)
        d = run.networks["discriminator"] if self.gan_on else None
        report = gan_step(
            run.networks["generator"], d, batch, run.objective, d_steps=cfg.training.d_steps_per_g_step
        )
        if run.ema is not None:
            run.ema.update(report.generator)
        if self.sample_log is not None:
            self.sample_log.step(p.step + 1, p.cursor, samples)
        p.step, p.cursor = p.step + 1, p.cursor + samples
        self.note(report, [key for micro in host for key in micro.keys], samples)

    def set_learning_rates(self, epochs: float) -> None:
        for part, network in self.run.networks.items():
            network.set_learning_rate(self.schedules[part].at(epochs))
        self.lr, self.d_lr = (self.schedules[part].at(epochs) for part in ("generator", "discriminator"))

    def note(self, report: StepReport, keys: list[str], samples: int) -> None:
        for name, value in report.losses.items():
            self.averages.add(name, value)
        for part, result in (("G", report.generator), ("D", report.discriminator)):
            if result is not None:
                # Every rank holds the whole norm; a sum over ranks follows.
                norm = result.grad_norm.to(self.run.device) / self.run.env.world_size
                self.averages.add(f"{part}_grad_norm", norm)
        self.faults.note(self.run.progress.step, keys, report)
        self.averages.steps += 1
        flops, gan = 0.0, report.discriminator is not None
        if self.flops is not None:
            share = samples / self.run.env.world_size
            flops = share * self.flops.step(gan=gan, d_steps=self.run.cfg.training.d_steps_per_g_step)
        self.meter.step(samples, flops)
        self.run.console.advance()

    # -- what a person sees ----------------------------------------------------------------

    def log_step(self) -> None:
        """Read the device once: mean losses over all ranks and the steps since the last look."""
        run, p = self.run, self.run.progress
        found = self.averages.look()
        means = {f"train/{name}": value for name, value in found.items()}
        self.faults.look(p.skipped)
        speed = self.meter.read()
        skipped = {f"train/skipped_{part}": float(n) for part, n in p.skipped.items()}
        if "train/ssim_loss" in means:
            means["train/ssim"] = 1 - means["train/ssim_loss"]
        rates = {"train/lr": self.lr}
        if "discriminator" in run.networks:
            rates["train/D_lr"] = self.d_lr
        epoch = self.step_epoch + 1  # a step belongs to the epoch of its first sample
        run.log.scalars(p.step, epoch, p.cursor, {**means, **rates, **skipped, **speed.scalars()})
        shown = {str(name): found[name] for name in ("G_loss", "D_loss") if name in found}
        run.console.log(p.step, epoch, shown, self.lr, speed)

    def start_epoch(self) -> None:
        p, batch = self.run.progress, self.order.global_batch
        if p.cursor >= self.order.total_samples:
            return
        first, last = self.epochs_done * self.order.n, (self.epochs_done + 1) * self.order.n
        steps = -(-(last - p.cursor) // batch)
        done = max(0, (p.cursor - first) // batch)
        self.run.console.start_epoch(self.epochs_done + 1, steps + done, done)

    def end_epoch(self, before: int) -> None:
        """Epochs `before + 1` to `epochs_done` have ended (several, if a batch is larger than the set)."""
        run, t, done = self.run, self.run.cfg.training, self.epochs_done
        means = self.averages.epoch()
        run.console.summary(done, means["G_loss"], means.get("D_loss"))
        last = run.progress.cursor >= self.order.total_samples
        links = [LATEST]
        if crossed(before, done, t.val_every_n_epochs) or last:
            figures = crossed(before, done, t.log_images_every_n_epochs) or last
            if self.validation(figures):
                links.append(BEST)
        if crossed(before, done, t.save_every_n_epochs) and not t.save_best_only:
            links.append(epoch_name(done))
        if len(links) > 1 or crossed(before, done, t.save_latest_every_n_epochs):
            self.save(links)

    def validation(self, figures: bool) -> bool:
        """Validate, log, tell the schedules; True if it is the best so far."""
        run, p, t = self.run, self.run.progress, self.run.cfg.training
        began = time.monotonic()
        slots = validation_slots(len(run.val), run.env.world_size, run.env.rank, t.batch_size)
        workers = min(run.cfg.data.num_workers, len(slots))
        loader = batches_of(run.cfg.data, run.source, run.val, slots, run.device, workers)
        looks = LOOKS if run.env.rank == 0 else 0
        with loader as batches, run.ema.swapped_in() if run.ema else nullcontext():
            metrics, kept = validate(
                run.networks["generator"], batches, run.cfg.transform,
                run.objective.reconstruction_loss, run.device, looks,
            )  # fmt: skip
        run.log.scalars(
            p.step, self.epochs_done, p.cursor, {f"val/{name}": value for name, value in metrics.items()}
        )
        run.log.looks(p.step, kept, figures=figures)
        run.console.validation(self.epochs_done, metrics["loss"])
        if p.step > 0:
            for schedule in self.schedules.values():
                schedule.validated(metrics["loss"])
        # A NaN is no best; nor is the untrained network.
        best = p.step > 0 and metrics["loss"] < (math.inf if p.best is None else p.best)
        if best:
            p.best = metrics["loss"]
        self.deadline.pause(time.monotonic() - began)
        self.meter.restart()
        return best

    # -- saving ----------------------------------------------------------------------------

    def save_due(self) -> bool:
        every = self.run.cfg.training.save_every_n_steps
        by_step = every is not None and self.run.progress.step % every == 0
        return by_step or self.run.stop.save_agreed

    def save(self, links: list[str]) -> None:
        """Copy the state to the host and write it behind training."""
        run, p = self.run, self.run.progress
        p.plateau = {part: schedule.state() for part, schedule in self.schedules.items()}
        state = snapshot(p, run.networks)
        pieces = saved_fragments(run.networks, run.ema)
        run.saver.save(step_name(p.step), pieces, state, to_yaml(run.cfg), links=links)
        self.saved_at = p.step
        self.save_clock.met()
        self.meter.restart()

    def finish(self, reason: StopReason | None) -> None:
        """The last save, waited for."""
        run = self.run
        if run.profiler is not None:
            run.profiler.finish(run.progress.step)
        if self.averages.steps:
            self.log_step()
        if self.saved_at != run.progress.step:
            self.save([LATEST])
        run.saver.wait()
        if reason == StopReason.SIGNAL:
            self.note_stop()
        if failure := broadcast_object(run.log.failure):
            raise failure
        run.console.close()

    def note_stop(self) -> None:
        """How long the signal took to become a save, beside what bounds it."""
        run = self.run
        waits = [w for w in all_gather_object(time.monotonic() - run.stop.signalled_at) if not math.isnan(w)]
        if run.env.rank == 0:
            stop = {
                "signal_to_saved_s": max(waits),
                "longest_step_s": self.deadline.longest_step,
                "longest_save_s": run.saver.longest,
            }
            note_timing(run.saver.folder, {"step": run.progress.step, "stop": stop})


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every


def has_dropout(cfg: TrainConfig) -> bool:
    """Whether a forward pass draws random numbers."""
    m = cfg.model
    return m.transformer_attn_drop + m.transformer_proj_drop + m.transformer_drop_path_rate > 0
