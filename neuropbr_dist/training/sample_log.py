"""`samples.jsonl`: which samples each step took."""

from __future__ import annotations

from collections.abc import Sequence

from neuropbr_dist.data.order import SampleOrder
from neuropbr_dist.data.sources import Entry
from neuropbr_dist.monitor import RunLog
from neuropbr_dist.monitor.run_logs import SAMPLES


def log_samples(log: RunLog, order: SampleOrder, entries: Sequence[Entry], step: int, cursor: int) -> None:
    """Note that `step` takes its samples from `cursor` on, by epoch counted from 1.

    One line a step: `{"step": 7, "samples": {"1": ["clean/sample_0004"], "2": [...]}}`. The whole batch follows from
    the order of samples, so one rank can write it.

    Args:
        entries: the training set.
    """
    by_epoch: dict[int, list[str]] = {}
    for epoch, index in order.indices(cursor, order.batch_size_at(cursor)):
        by_epoch.setdefault(epoch + 1, []).append(entries[index].key)
    log.line(SAMPLES, {"step": step, "samples": by_epoch})
