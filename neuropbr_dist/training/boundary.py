"""Between two steps: whether to stop there, and whether to save. The same on every rank."""

from __future__ import annotations

import math
import time

from neuropbr_dist.cluster import Deadline, Every, StopFlag, StopReason
from neuropbr_dist.config import TrainingConfig
from neuropbr_dist.ranks import all_gather_object, is_rank_0
from neuropbr_dist.training.start import Start


class Boundary:
    """Signals, the allocation's end and the command line's limits, as ranks agree on them.

    Only rank 0 reads a clock; the others get its decision from `StopFlag.agreed`. From now on signals are the run's.

    Args:
        end: of the allocation in Unix seconds, or None for no end.
        launched: by a launcher whose end is to be the run's.
    """

    def __init__(
        self, start: Start, training: TrainingConfig, end: float | None, launched: bool = False
    ) -> None:
        self.start, self.every_n_steps = start, training.save_every_n_steps
        self.deadline = Deadline(end if is_rank_0() else None)
        self.save_clock = Every(training.save_every_n_minutes if is_rank_0() else None)
        self.flag = StopFlag(launched)

    def stop(self, step: int, epochs: int, *, failed: bool, save_seconds: float) -> StopReason | None:
        """Return why to stop here although the run isn't over. Collective, once a boundary.

        Args:
            step, epochs: done, in all.
            failed: this rank can't go on; the others learn it here.
            save_seconds: what a save takes.
        """
        if failed:
            self.flag.request(StopReason.FAILED)
        if self.deadline.reached(save_seconds):
            self.flag.request(StopReason.TIME_LIMIT)
        if self.save_clock.due():
            self.flag.request_save()
        if reason := self.flag.agreed():
            return reason
        limit = self.start
        if limit.stop_after_steps is not None and step >= limit.stop_after_steps:
            return StopReason.AFTER_STEPS
        if limit.stop_after_epochs is not None and epochs >= limit.stop_after_epochs:
            return StopReason.AFTER_EPOCHS
        return None

    def save_due(self, step: int) -> bool:
        """Return whether to save after `step`, be it amid an epoch."""
        by_step = self.every_n_steps is not None and step % self.every_n_steps == 0
        return by_step or self.flag.save_agreed

    def stop_timing(self) -> dict[str, float]:
        """Return how long a signal took to become the save that has just ended, beside what bounds it. Collective."""
        waits = all_gather_object(time.monotonic() - self.flag.signalled_at)
        longest = max(wait for wait in waits if not math.isnan(wait))
        return {"signal_to_saved_s": longest, "longest_step_s": self.deadline.longest_step}
