"""The loop: stages, steps, log lines, validations, saves, in the order of the sample cursor."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path

import torch

from neuropbr_dist.checkpoint import BEST, LATEST, Checkpoint, RunLock, epoch_name, step_name
from neuropbr_dist.cluster import StopReason
from neuropbr_dist.config import to_yaml
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.device import to_device
from neuropbr_dist.data.loader import batches_of, training_slots
from neuropbr_dist.errors import UserError
from neuropbr_dist.monitor.run_logs import TIMINGS
from neuropbr_dist.objectives.perceptual import load_perceptual
from neuropbr_dist.parallel.blocks import compiled, compiler_files
from neuropbr_dist.parallel.strips import strip_of
from neuropbr_dist.ranks import on_each_rank, on_rank_0
from neuropbr_dist.training.baseline import NAME as MEAN_MAPS
from neuropbr_dist.training.boundary import Boundary
from neuropbr_dist.training.ema import WeightAverage
from neuropbr_dist.training.facts import describe, start_facts
from neuropbr_dist.training.faults import Fault
from neuropbr_dist.training.first_weights import FirstWeights, Weights
from neuropbr_dist.training.folder import is_newest, mark_end, open_folder
from neuropbr_dist.training.memory import memory_told
from neuropbr_dist.training.networks import build_networks, change_networks
from neuropbr_dist.training.objective import Objective
from neuropbr_dist.training.profile import StepProfiler
from neuropbr_dist.training.schedule import Schedule
from neuropbr_dist.training.setup import has_dropout
from neuropbr_dist.training.sharing import rows_of
from neuropbr_dist.training.stages import RunStage, StagedRun
from neuropbr_dist.training.start import Start
from neuropbr_dist.training.state import Progress, restore, saved_fragments, snapshot
from neuropbr_dist.training.step_log import StepLog, log_samples
from neuropbr_dist.training.timings import StartUp
from neuropbr_dist.training.update import Update
from neuropbr_dist.training.validation import validate_stage

LAST_SAVE_S = 120.0
"""For a save in flight when an error ends the run; without end if another rank is gone."""


class Trainer:
    """A run's parts, and the loop over them.

    Args:
        stage: the one to begin with.
        backbone: what the generator's encoder starts from; None: random weights, or a checkpoint's.
        first: what both networks start from; None: nothing but what is above.
        start_up: told what takes how long until the first step is done.
    """

    def __init__(
        self,
        run: StagedRun,
        stage: RunStage,
        backbone: Weights | None,
        first: FirstWeights | None,
        start: Start,
        start_up: StartUp,
    ) -> None:
        # What holds for the whole run; the stage's side and batches are its own.
        cfg, t, setup = run.cfg, run.cfg.training, stage.setup
        self.run, self.stage, self.start, self.start_up = run, stage, start, start_up
        self.cfg, self.env, self.device = cfg, setup.env, setup.device
        self.folder = Path(t.checkpoint_dir)
        self.strip = strip_of(setup.sample_ranks, timedelta(minutes=t.timeout_minutes))
        """This rank's of the samples that it shares with others; None: it has whole ones."""
        # What a checkpoint holds.
        self.networks = build_networks(setup, backbone, first, self.strip)
        self.began_with = first.what if first else None
        self.start_up.mark("networks")
        self.ema = WeightAverage(self.networks["generator"], t.ema_decay) if t.ema_decay is not None else None
        self.progress = Progress()
        self.schedules = {
            "generator": Schedule(cfg.optimizer, cfg.optimizer.g_lr),
            "discriminator": Schedule(cfg.optimizer, cfg.optimizer.d_lr),
        }
        self.saved_at = -1
        """Step of the newest save in the run's folder; -1: none."""
        # What a step needs besides.
        self.objective = Objective(cfg, setup.compile_losses, self.strip)
        self.perceptual = load_perceptual(self.device)
        self.renderer = stage.samples.renderer(self.device)
        if setup.compile_losses:
            self.renderer.compile(compiled)
        self.update = self.update_of(stage)
        self.rates: dict[str, float] = {}
        """Learning rates of the last step, as they are logged."""
        self.step_epoch = 0
        self.fault = Fault()

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Take up the state that a checkpoint holds. Collective."""
        self.progress = restore(checkpoint, self.networks, self.ema)
        for part, state in self.progress.plateau.items():
            self.schedules[part].load(state)
        if self.progress.cursor == self.run.begins(self.stage):
            self.begin_anew()
        self.saved_at = self.progress.step if is_newest(checkpoint, self.folder) else -1
        self.start_up.mark("load")

    def open_folder(self, lock: RunLock, end: float | None) -> None:
        """Open all that writes into the run's folder, as everything else is known to be good. Collective."""
        p, setup = self.progress, self.stage.setup
        p.begin(self.stage.order.global_batch, self.run.fingerprint, self.env.world_size, setup.engine)
        self.log, self.console, self.saver = open_folder(
            self.cfg, p.step, lock, self.env, overwrite=self.start.overwrite
        )
        self.saver.prepare(saved_fragments(self.networks, self.ema))
        describe(self.run, self.stage)
        self.log.started(p.step, start_facts(self.run, self.stage) | {"init_from": self.began_with})
        self.log.text(p.step, {"config": to_yaml(self.cfg)})
        traced = self.start.profile if self.env.rank == 0 else None
        self.profiler = StepProfiler(traced, self.folder / "profile", self.device)
        self.step_log = StepLog(setup, self.log, self.console)
        # Not before: a rank that waits in the set-up for a dead one would wait on, and there is nothing to save yet.
        self.boundary = Boundary(self.start, self.cfg.training, end, launched=self.env.distributed)
        self.start_up.mark("logs")

    # -- progress --------------------------------------------------------------------------

    # Epochs are counted from 1, everywhere a person sees them: epoch n is the n-th, what is measured
    # or saved after it carries n, and 0 is before training.

    @property
    def epochs_done(self) -> int:
        return self.stage.order.epoch_of(self.progress.cursor)

    @property
    def over(self) -> bool:
        """Whether the stage has ended."""
        return self.progress.cursor >= self.stage.last

    @property
    def gan_on(self) -> bool:
        """Whether the step at hand trains the discriminator too."""
        started = self.epochs_done + 1 >= self.cfg.training.gan_start_epoch
        return "discriminator" in self.networks and started

    @property
    def longest_wait(self) -> float:
        """Seconds that a batch may take: the other ranks, who wait in a collective, are to hear of it."""
        return 30 * self.cfg.training.timeout_minutes

    # -- the loop --------------------------------------------------------------------------

    def train(self, lock: RunLock, end: float | None) -> StopReason | None:
        """Run to the end, or to a stop; return why it stopped. Collective.

        Args:
            lock: held on the run's folder.
            end: of the allocation in Unix seconds, or None for no end.
        """
        self.open_folder(lock, end)
        try:
            if self.progress.step == 0:
                self.validation(figures=False)
                self.start_up.mark("first validation")
            reason = self.train_stage()
            while reason is None and (following := self.run.after(self.stage)) is not None:
                self.go_over_to(following)
                reason = self.train_stage()
            self.log.ended(self.progress.step, str(reason or "finished"))
            mark_end(self.folder, self.progress.step, reason, self.boundary.flag.signal)
        except UserError as error:
            self.log.ended(self.progress.step, f"error: {error}")
            self.saver.leave(LAST_SAVE_S)
            raise
        finally:
            self.boundary.flag.close()
            self.console.close()
            self.log.close()
        self.saver.close()
        return reason

    def train_stage(self) -> StopReason | None:
        """Train from the cursor to the stage's end, or to a stop, with which the run's last save comes."""
        with self.batches() as batches:
            reason = self.steps(batches)
            if reason is not None or self.run.after(self.stage) is None:
                self.finish(reason)  # the loader's end can wait, a save can't
        return reason

    def go_over_to(self, stage: RunStage) -> None:
        """Begin the next stage: networks stay, all that depends on its side and batches is the stage's. Collective."""
        began = time.monotonic()
        self.update = self.update_of(stage)  # without what the last stage has recorded
        if stage.setup.sample_ranks != self.stage.setup.sample_ranks:
            limit = timedelta(minutes=self.cfg.training.timeout_minutes)
            self.strip = self.objective.strip = strip_of(stage.setup.sample_ranks, limit)
        change_networks(self.networks, self.stage.setup, stage.setup, self.strip)
        self.stage = stage
        self.begin_anew()
        self.progress.global_batch = stage.order.global_batch
        self.console.loading_anew()
        describe(self.run, stage, whole=False)
        self.step_log = StepLog(stage.setup, self.log, self.console)
        self.boundary.deadline.pause(seconds := time.monotonic() - began)
        self.log.line(TIMINGS, {"step": self.progress.step, "stage": stage.number, "begun_s": seconds})

    def update_of(self, stage: RunStage) -> Update:
        """Return what makes a stage's steps."""
        d_steps, replayed = self.cfg.training.d_steps_per_g_step, stage.setup.replays
        return Update(self.networks, self.objective, self.ema, d_steps=d_steps, replayed=replayed)

    def begin_anew(self) -> None:
        """Forget the best loss and what schedules know: losses of another side don't compare."""
        self.progress.best = None
        for schedule in self.schedules.values():
            schedule.restart()

    @compiler_files()
    def steps(self, batches: Iterator[MicroBatch]) -> StopReason | None:
        """Run all that is between a stage's first step and its end; return why it stopped early, if it did."""
        p, reason = self.progress, None
        self.start_epoch()
        self.step_log.meter.restart()
        while not self.over:
            host = self.fetch(batches)
            if (reason := self.wanted_stop()) is not None:
                break
            before = self.epochs_done
            self.profiler.before(p.step + 1)
            with memory_told(
                self.stage.setup.samples.side, self.stage.setup.micro.size, self.stage.setup.memory
            ):
                self.step(host)
            self.profiler.after(p.step)
            self.start_up.first_step(self.device, self.log, p.step)
            ended = self.epochs_done > before
            if p.step % self.cfg.training.log_every_n_steps == 0 or ended or self.over:
                self.log_step()
            if ended:
                self.end_epoch(before)
                self.start_epoch()
            elif self.boundary.save_due(p.step):
                self.save([LATEST])
        return reason

    def wanted_stop(self) -> StopReason | None:
        """Return why to stop at this boundary although the run isn't over; the same on every rank."""
        # `finish` raises it on all ranks.
        failed = self.saver.failed or self.log.failure is not None or self.fault.error is not None
        return self.boundary.stop(
            self.progress.step, self.epochs_done, failed=failed, save_seconds=self.saver.expected
        )

    def batches(self) -> AbstractContextManager[Iterator[MicroBatch]]:
        """Return this rank's micro-batches, from the cursor to the end of the stage."""
        setup, order, samples = self.stage.setup, self.stage.order, self.stage.samples
        cfg = setup.cfg
        slots = training_slots(order, self.progress.cursor, *setup.data_place, cfg.training.batch_size)
        return batches_of(
            cfg.data, samples.source, samples.train, slots, self.device, augmentation=Augmentation.of_run(cfg),
            alignment=Alignment.of_run(cfg, training=True), relight=self.objective.relight,
            rows=rows_of(self.env, setup.sample_ranks, samples.source.size),
            stopped=lambda: self.boundary.flag.is_set, limit_s=self.longest_wait,
        )  # fmt: skip

    def fetch(self, batches: Iterator[MicroBatch]) -> list[MicroBatch]:
        """Return a step's micro-batches; none if the run is to stop first, or a `fault` has come in their place."""
        with self.step_log.meter.waiting(), self.fault.noting():
            return [next(batches) for _ in range(self.stage.setup.micro.per_step)]
        return []

    def step(self, host: list[MicroBatch]) -> None:
        p, cfg, order = self.progress, self.cfg, self.stage.order
        samples, self.step_epoch = order.batch_size_at(p.cursor), self.epochs_done
        self.start_up.mark("first batch")
        batch = [
            to_device(micro, samples, cfg.transform, self.device, renderer=self.renderer) for micro in host
        ]
        self.set_learning_rates((p.cursor + samples) / order.n)
        if has_dropout(cfg.model):
            # Keyed by step and samples: nothing to save, and strips of one sample drop the same path.
            _, group = self.stage.setup.data_place
            torch.manual_seed(hash((cfg.training.seed, p.step, group)) % 2**63)
        result = self.update(batch, p.step + 1, gan=self.gan_on)
        if cfg.training.log_samples and self.env.rank == 0:
            log_samples(self.log, order, self.stage.samples.train, p.step + 1, p.cursor)
        p.step, p.cursor = p.step + 1, p.cursor + samples
        self.step_log.note(p.step, [key for micro in host for key in micro.keys], samples, result)

    def set_learning_rates(self, epochs: float) -> None:
        """Set the rates of the step that ends at `epochs` epochs into the run."""
        scale = self.stage.wanted.lr_scale
        rates = {part: scale * schedule.at(epochs) for part, schedule in self.schedules.items()}
        for part, network in self.networks.items():
            network.set_learning_rate(rates[part])
        names = {"generator": "lr", "discriminator": "D_lr"}
        self.rates = {names[part]: rates[part] for part in self.networks}

    # -- what a person sees ----------------------------------------------------------------

    def log_step(self) -> None:
        with self.fault.noting():
            self.step_log.read(self.progress, self.step_epoch + 1, self.rates)  # its first sample's epoch

    def start_epoch(self) -> None:
        p, order = self.progress, self.stage.order
        if self.over:
            return
        first, last = self.epochs_done * order.n, (self.epochs_done + 1) * order.n
        steps = -(-(last - p.cursor) // order.global_batch)
        done = max(0, (p.cursor - first) // order.global_batch)
        self.console.start_epoch(self.epochs_done + 1, steps + done, done)

    def end_epoch(self, before: int) -> None:
        """Do what is due when epochs `before + 1` to `epochs_done` have ended (several, if a batch is
        larger than the set)."""
        t, done, links = self.cfg.training, self.epochs_done, [LATEST]
        means = self.step_log.epoch_means()
        self.console.summary(done, means["G_loss"], means.get("D_loss"))
        if crossed(before, done, t.val_every_n_epochs) or self.over:
            figures = crossed(before, done, t.log_images_every_n_epochs) or self.over
            if self.validation(figures):
                links.append(BEST)
        if crossed(before, done, t.save_every_n_epochs) and not t.save_best_only:
            links.append(epoch_name(done))
        if len(links) > 1 or crossed(before, done, t.save_latest_every_n_epochs):
            self.save(links)

    @compiler_files()
    def validation(self, figures: bool) -> bool:
        """Validate, log, tell the schedules; return whether it is the best of the stage so far."""
        p = self.progress
        if self.fault.error is not None:  # of the updates, which all ranks see alike
            return False
        began = time.monotonic()
        # What the mean maps come to depends on the side: beside a stage's first figures.
        first = p.step == 0 or (self.stage.number > 1 and p.best is None)
        with self.ema.swapped_in() if self.ema else nullcontext():
            found = validate_stage(
                self.stage, self.networks["generator"], self.objective, self.renderer, self.fault,
                self.longest_wait, self.perceptual, self.strip, baseline=first,
            )  # fmt: skip
        if found is None:
            return False
        metrics = found.sums.result()
        values = {f"val/{name}": value for name, value in metrics.items()}
        if found.baseline is not None:
            values |= {f"{MEAN_MAPS}/{name}": value for name, value in found.baseline.result().items()}
        self.log.scalars(p.step, self.epochs_done, p.cursor, values)
        self.log.looks(p.step, found.looks, figures=figures)
        self.console.validation(self.epochs_done, metrics["loss"])
        if p.step > 0:
            for schedule in self.schedules.values():
                schedule.validated(metrics["loss"])
        # A NaN is no best; nor is the untrained network.
        best = p.step > 0 and metrics["loss"] < (math.inf if p.best is None else p.best)
        if best:
            p.best = metrics["loss"]
        self.boundary.deadline.pause(time.monotonic() - began)
        self.step_log.meter.restart()
        return best

    # -- saving ----------------------------------------------------------------------------

    def save(self, links: list[str]) -> None:
        """Copy the state to the host and write it behind training."""
        p = self.progress
        p.plateau = {part: schedule.state() for part, schedule in self.schedules.items()}
        state = snapshot(p, self.networks)
        pieces = saved_fragments(self.networks, self.ema)
        self.saver.save(step_name(p.step), pieces, state, to_yaml(self.cfg), links=links)
        self.saved_at = p.step
        self.boundary.save_clock.met()
        self.step_log.meter.restart()

    def finish(self, reason: StopReason | None) -> None:
        """Make the last save and wait for it."""
        p = self.progress
        self.profiler.finish(p.step)
        if self.step_log.steps:
            self.log_step()
        faulty = self.fault.anywhere()
        if self.saved_at != p.step and (p.step > 0 or not faulty):
            self.save([LATEST])
        self.saver.wait()
        if reason is StopReason.SIGNAL:
            stop = self.boundary.stop_timing() | {"longest_save_s": self.saver.longest}
            self.log.line(TIMINGS, {"step": p.step, "stop": stop})
        on_rank_0(self.log.check)
        on_each_rank(self.fault.check)
        self.console.close()


def crossed(before: int, after: int, every: int) -> bool:
    """Return whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every
