"""Console of a run: a progress bar per epoch on a terminal, plain lines into a file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

from neuropbr_dist.logs import CONSOLE
from neuropbr_dist.monitor.throughput import Throughput

log = logging.getLogger(__name__)

DATA_WAIT_HINT = 0.05
"""Share of the time spent waiting for data above which a run says so."""


class Console:
    """Says how a run gets on, in the training guide's words.

    On a terminal an epoch is one tqdm bar. Elsewhere (a Slurm log, a pipe) each log
    step is one plain line instead, without control characters.

    Args:
        enabled: whether this rank may show a bar; its lines go to the logger, as all lines.
    """

    def __init__(self, enabled: bool = True):
        self.on_terminal = enabled and sys.stdout.isatty()
        self._logged = self._hinted = False

    def start_epoch(self, epoch: int, steps: int, done: int = 0) -> None:
        """Begin an epoch of `steps` steps, of which a resumed run has `done` behind it."""
        self.close()
        if not self.on_terminal:
            return
        with CONSOLE.writing():
            CONSOLE.bar = tqdm(total=steps, initial=done, desc=f"Epoch {epoch}", file=sys.stdout)

    def advance(self) -> None:
        """Note that one step is done."""
        if CONSOLE.bar is not None:
            with CONSOLE.writing():
                CONSOLE.bar.update()

    def log(self, step: int, epoch: int, losses: dict[str, float], lr: float, throughput: Throughput) -> None:
        """Show a log step's losses (`G_loss`, `D_loss`, ...): at the bar's end, or as one plain line."""
        shown = {name: number(value) for name, value in losses.items()}
        self._hint(throughput)
        if CONSOLE.bar is not None:
            with CONSOLE.writing():
                CONSOLE.bar.set_postfix(shown)
            return
        t = throughput
        said = "  ".join(f"{name} {value}" for name, value in shown.items())
        log.info(
            f"Epoch {epoch}  step {step}  {said}  lr {lr:.3g}  {t.ms_per_step:.0f} ms/step  "
            f"{t.samples_per_s:.2f} samples/s  data wait {t.data_wait:.1%}  {t.memory_gib:.1f} GiB"
        )

    def loading_anew(self) -> None:
        """Note that the loader's processes start again: the next interval says nothing of waiting."""
        self._logged = False

    def _hint(self, throughput: Throughput) -> None:
        """Say once a run that waiting takes long. The first interval doesn't count: the loader's processes
        were starting."""
        if self._logged and not self._hinted and throughput.data_wait > DATA_WAIT_HINT:
            self._hinted = True
            log.info(
                f"{throughput.data_wait:.0%} of the time goes into waiting for data: raise data.num_workers, "
                "or pack the set (launch/data.py pack) and train on it by --data"
            )
        self._logged = True

    def summary(self, epoch: int, generator_loss: float, discriminator_loss: float | None = None) -> None:
        """End an epoch with its mean losses; None: no discriminator was trained."""
        self.close()
        log.info(f"Epoch {epoch} Summary:")
        log.info(f"  Generator Loss: {number(generator_loss)}")
        if discriminator_loss is not None:
            log.info(f"  Discriminator Loss: {number(discriminator_loss)}")

    def validation(self, epoch: int, loss: float) -> None:
        """Print the validation loss of an epoch."""
        log.info(f"[Validation] Epoch {epoch} - Loss: {number(loss)}")

    def saved(self, path: Path | str) -> None:
        """Say that a checkpoint is on disk."""
        log.info(f"Saved checkpoint: {path}")

    def saved_best(self, path: Path | str) -> None:
        """Say that a best model is on disk."""
        log.info(f"Saved best model: {path}")

    def close(self) -> None:
        """End the bar, if there is one."""
        if CONSOLE.bar is not None:
            with CONSOLE.writing():
                CONSOLE.bar.close()
            CONSOLE.bar = None


def number(value: float) -> str:
    """Format a number by three decimals, or three significant digits where that would hide the value:
    12.346, 0.0568, 1.2e-05."""
    return f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"
