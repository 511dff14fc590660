"""The logs in a run's folder, JSON lines that this package writes and reads back.

metrics.jsonl    losses, metrics, rates and speeds: a line a log step and a validation
history.jsonl    each start, with what it ran on, and each end
timings.jsonl    where the time outside of steps goes: a line a start, a save and a stop
samples.jsonl    which samples each step took (`training.log_samples`)
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from neuropbr_dist.files import JsonLines
from neuropbr_dist.kinds import fits

METRICS, HISTORY, TIMINGS, SAMPLES = LOGS = (
    "metrics.jsonl", "history.jsonl", "timings.jsonl", "samples.jsonl"
)  # fmt: skip
_START: dict[str, type] = {
    "world_size": int, "nodes": int, "devices": dict, "launcher": str, "engine": str, "precision": str,
    "activation_checkpointing": str, "compile": str, "global_batch": int, "micro_batch": int,
    "micro_batches_per_step": int, "train_samples": int, "val_samples": int, "image_size": int, "parameters": dict,
    "versions": dict,
}  # fmt: skip
_FIELDS: dict[str, dict[str, type]] = {
    METRICS: {"step": int, "epoch": int, "samples": int},
    HISTORY: {"step": int, "event": str, "time": str},
    TIMINGS: {"step": int},
    SAMPLES: {"step": int, "samples": dict},
}


def run_log(folder: Path, name: str) -> JsonLines:
    """Return the log `name`, one of `LOGS`, of the run in `folder`; every line of it has a `step`."""

    def valid(line: Any) -> bool:
        if not _holds(line, _FIELDS[name]):
            return False
        if name == METRICS and not all(map(_is_figure, line.values())):
            return False
        if name != HISTORY:
            return True
        sound = _is_time(line["time"])
        if line["event"] == "start":
            counts = (
                [*line["devices"].values(), *line["parameters"].values()] if _holds(line, _START) else [None]
            )
            return sound and all(fits(count, int) for count in counts) and "engine_discriminator" in line
        return sound and isinstance(line.get("how"), str)

    return JsonLines(folder / name, f"a run's {name}", valid)


def _holds(line: Any, fields: dict[str, type]) -> bool:
    """Return whether a line is an object with these fields, each of its type."""
    return isinstance(line, dict) and all(fits(line.get(key), kind) for key, kind in fields.items())


def _is_figure(value: Any) -> bool:
    """Return whether a value is a number, or one that JSON hasn't, as text."""
    return type(value) in (int, float) or value in ("nan", "inf", "-inf")


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
