"""What steps come to: kept on the device, read at log steps, shown and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from neuropbr_dist.monitor import Console, Meter, RunLog
from neuropbr_dist.training.averages import Averages
from neuropbr_dist.training.faults import FaultWatch
from neuropbr_dist.training.flops import matmul_flops, sample_flops
from neuropbr_dist.training.setup import Setup
from neuropbr_dist.training.state import Progress
from neuropbr_dist.training.step import StepReport


class StepLog:
    """Losses, gradient norms, faults and speed of the steps since the last log step."""

    def __init__(self, setup: Setup, run_log: RunLog, console: Console) -> None:
        t, self.world = setup.cfg.training, setup.env.world_size
        self.run_log, self.console, self.d_steps = run_log, console, t.d_steps_per_g_step
        self.averages = Averages(setup.device)
        self.faults = FaultWatch(t.max_skipped_steps)
        self.flops, peak = None, None
        if (
            setup.env.rank == 0 and setup.device.type == "cuda"
        ):  # a CPU's cores are shared: its ceiling says little
            self.flops = sample_flops(setup.cfg, setup.samples.side)
            peak = matmul_flops(setup.device, setup.precision)
        self.meter = Meter(setup.device, peak)

    @property
    def empty(self) -> bool:
        """Whether no step has come since the last log step."""
        return self.averages.steps == 0

    def note(self, step: int, keys: Sequence[str], samples: int, report: StepReport) -> None:
        """Keep what step `step` came to; the host reads nothing.

        Args:
            keys: of this rank's samples.
            samples: of the global batch.
        """
        for name, value in report.losses.items():
            self.averages.add(name, value)
        for part, result in (("G", report.generator), ("D", report.discriminator)):
            if result is not None:
                # Every rank holds the whole norm; a sum over ranks follows.
                norm = result.grad_norm.to(self.meter.device) / self.world
                self.averages.add(f"{part}_grad_norm", norm)
        self.faults.note(step, list(keys), report)
        self.averages.steps += 1
        flops, gan = 0.0, report.discriminator is not None
        if self.flops is not None:
            flops = samples / self.world * self.flops.step(gan=gan, d_steps=self.d_steps)
        self.meter.step(samples, flops)
        self.console.advance()

    def read(self, progress: Progress, epoch: int, rates: Mapping[str, float]) -> None:
        """Read the device once: mean losses over all ranks and the steps since the last log step. Collective.

        Args:
            progress: gets the updates that were skipped.
            epoch: of the last step, counted from 1.
            rates: `lr` and, with a GAN, `D_lr`.
        """
        found = self.averages.look()
        means = {f"train/{name}": value for name, value in found.items()}
        self.faults.look(progress.skipped)
        speed = self.meter.read()
        if "train/ssim_loss" in means:
            means["train/ssim"] = 1 - means["train/ssim_loss"]
        others = {f"train/{name}": rate for name, rate in rates.items()}
        others |= {f"train/skipped_{part}": float(count) for part, count in progress.skipped.items()}
        self.run_log.scalars(progress.step, epoch, progress.cursor, means | others | speed.scalars())
        shown = {str(name): found[name] for name in ("G_loss", "D_loss") if name in found}
        self.console.log(progress.step, epoch, shown, rates["lr"], speed)
