"""Figures of steps: summed on the device, read at log steps, shown and written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from neuropbr_dist.data.order import SampleOrder
from neuropbr_dist.data.sources import Entry
from neuropbr_dist.monitor import Console, Meter, RunLog
from neuropbr_dist.monitor.run_logs import SAMPLES
from neuropbr_dist.training.faults import FaultWatch
from neuropbr_dist.training.flops import matmul_flops, sample_flops
from neuropbr_dist.training.setup import Setup
from neuropbr_dist.training.state import Progress
from neuropbr_dist.training.step import GanStepResult


def log_samples(log: RunLog, order: SampleOrder, entries: Sequence[Entry], step: int, cursor: int) -> None:
    """Note in `samples.jsonl` that `step` takes its samples from `cursor` on, by epoch counted from 1.

    One line a step: `{"step": 7, "samples": {"1": ["clean/sample_0004"], "2": [...]}}`. The whole batch follows from
    the order of samples, so one rank can write it.

    Args:
        entries: the training set.
    """
    by_epoch: dict[int, list[str]] = {}
    for epoch, index in order.indices(cursor, order.batch_size_at(cursor)):
        by_epoch.setdefault(epoch + 1, []).append(entries[index].key)
    log.line(SAMPLES, {"step": step, "samples": by_epoch})


class StepLog:
    """Losses, gradient norms, faults and speed: means over the steps since the last log step, and over an epoch."""

    def __init__(self, setup: Setup, run_log: RunLog, console: Console) -> None:
        self.run_log, self.console, self.setup = run_log, console, setup
        self.steps = 0
        """Since the last log step."""
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=setup.device))
        self._epoch: dict[str, tuple[float, int]] = {}  # sum and steps
        self._faults = FaultWatch(setup.cfg.training.max_skipped_steps)
        self._flops, peak = None, None
        # Not on a CPU, whose cores are shared: its ceiling says little.
        if setup.env.rank == 0 and setup.device.type == "cuda":
            self._flops = sample_flops(setup.cfg, setup.samples.side)
            peak = matmul_flops(setup.device, setup.need.dtype)
        self.meter = Meter(setup.device, peak)

    def note(self, step: int, keys: Sequence[str], samples: int, result: GanStepResult) -> None:
        """Keep what step `step` came to; the host reads nothing.

        Args:
            keys: of this rank's samples.
            samples: of the global batch.
        """
        world = self.setup.env.world_size
        for name, value in result.losses.items():
            self._sums[name] += value  # this rank's part of what all ranks' parts add up to
        for part, update in (("G", result.generator), ("D", result.discriminator)):
            if update is not None:  # every rank holds the whole norm
                self._sums[f"{part}_grad_norm"] += update.grad_norm.to(self.setup.device) / world
        self._faults.note(step, keys, result)
        self.steps += 1
        flops = 0.0
        if self._flops is not None:
            d_steps = self.setup.cfg.training.d_steps_per_g_step
            flops = samples / world * self._flops.step(gan=result.discriminator is not None, d_steps=d_steps)
        self.meter.step(samples, flops)
        self.console.advance()

    def read(self, progress: Progress, epoch: int, rates: Mapping[str, float]) -> None:
        """Read the device once, and show and write what it says. Collective.

        Args:
            progress: gets the updates that were skipped.
            epoch: of the last step, counted from 1.
            rates: `lr` and, with a GAN, `D_lr`.
        """
        means = self._means()
        self._faults.collect(progress.skipped)
        speed = self.meter.read()
        values = {f"train/{name}": value for name, value in means.items()}
        if "ssim_loss" in means:
            values["train/ssim"] = 1 - means["ssim_loss"]
        values |= {f"train/{name}": rate for name, rate in rates.items()}
        values |= {f"train/skipped_{part}": float(count) for part, count in progress.skipped.items()}
        self.run_log.scalars(progress.step, epoch, progress.cursor, values | speed.scalars())
        shown = {name: value for name, value in means.items() if name in ("G_loss", "D_loss")}
        self.console.log(progress.step, epoch, shown, rates["lr"], speed)

    def _means(self) -> dict[str, float]:
        """Return means over all ranks and the steps since the last log step. Waits for the device."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].float() for name in names])
        if dist.is_initialized():
            dist.all_reduce(sums)
        values, steps = dict(zip(names, sums.tolist(), strict=True)), self.steps
        for name, value in values.items():
            total, count = self._epoch.get(name, (0.0, 0))
            self._epoch[name] = total + value, count + steps
        self._sums.clear()
        self.steps = 0
        return {name: value / steps for name, value in values.items()}

    def epoch_means(self) -> dict[str, float]:
        """Return the means over the epoch's steps that were read; the next epoch begins."""
        means = {name: total / steps for name, (total, steps) in self._epoch.items()}
        self._epoch.clear()
        return means
