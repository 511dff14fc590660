"""`samples.jsonl`: which samples each step took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neuropbr_dist.data.order import SampleOrder
from neuropbr_dist.data.sources import Entry
from neuropbr_dist.monitor.run_logs import SAMPLES, run_log


class SampleLog:
    """One line a step: `{"step": 7, "samples": {"1": ["clean/sample_0004"], "2": [...]}}`, by epoch from 1.

    The whole batch follows from the order of samples, so one rank can write it. What a
    step did not keep, because the run went back to an older save, is cut off at the start.

    Args:
        entries: the training set.
        step: last step that counts.
    """

    def __init__(self, folder: Path, order: SampleOrder, entries: Sequence[Entry], step: int) -> None:
        self.order, self.entries = order, entries
        self._log = run_log(folder, SAMPLES)
        self._log.keep(lambda line: line["step"] <= step)

    def step(self, step: int, cursor: int, count: int) -> None:
        """Note that `step` takes `count` samples from `cursor` on.

        Raises:
            UserError: the file can't be written.
        """
        by_epoch: dict[int, list[str]] = {}
        for epoch, index in self.order.indices(cursor, count):
            by_epoch.setdefault(epoch + 1, []).append(self.entries[index].key)
        self._log.append({"step": step, "samples": by_epoch})
