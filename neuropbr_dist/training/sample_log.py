"""`samples.jsonl`: which samples each step took."""

from __future__ import annotations

from collections.abc import Sequence

from neuropbr_dist.data.order import SampleOrder
from neuropbr_dist.data.sources import Entry
from neuropbr_dist.monitor import RunLog
from neuropbr_dist.monitor.run_logs import SAMPLES


class SampleLog:
    """One line a step: `{"step": 7, "samples": {"1": ["clean/sample_0004"], "2": [...]}}`, by epoch from 1.

    The whole batch follows from the order of samples, so one rank can write it.

    Args:
        entries: the training set.
    """

    def __init__(self, log: RunLog, order: SampleOrder, entries: Sequence[Entry]) -> None:
        self.log, self.order, self.entries = log, order, entries

    def step(self, step: int, cursor: int, count: int) -> None:
        """Note that `step` takes `count` samples from `cursor` on."""
        by_epoch: dict[int, list[str]] = {}
        for epoch, index in self.order.indices(cursor, count):
            by_epoch.setdefault(epoch + 1, []).append(self.entries[index].key)
        self.log.line(SAMPLES, {"step": step, "samples": by_epoch})
