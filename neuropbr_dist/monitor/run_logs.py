"""The logs in a run's folder, JSON lines that this package writes and reads back.

metrics.jsonl    losses, metrics, rates and speeds: a line a log step and a validation
history.jsonl    each start, with what it ran on, and each end
timings.jsonl    where the time outside of steps goes: a line a start, a save and a stop
samples.jsonl    which samples each step took (`training.log_samples`)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neuropbr_dist.files import JsonLines

METRICS, HISTORY, TIMINGS, SAMPLES = LOGS = (
    "metrics.jsonl", "history.jsonl", "timings.jsonl", "samples.jsonl"
)  # fmt: skip
_FIELDS: dict[str, dict[str, type]] = {
    METRICS: {"step": int, "epoch": int, "samples": int},
    HISTORY: {"step": int, "event": str, "time": str},
    TIMINGS: {"step": int},
    SAMPLES: {"step": int, "samples": dict},
}


def run_log(folder: Path, name: str) -> JsonLines:
    """Return the log `name`, one of `LOGS`, of the run in `folder`; every line of it has a `step`."""
    fields = _FIELDS[name]

    def valid(line: Any) -> bool:
        return isinstance(line, dict) and all(isinstance(line.get(key), kind) for key, kind in fields.items())

    return JsonLines(folder / name, f"a run's {name}", valid)
