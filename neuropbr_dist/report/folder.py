"""Contents of a run's folder, read for a person; the run may still be going."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from neuropbr_dist.config import TrainConfig, from_yaml
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import check_links, read_text
from neuropbr_dist.monitor.run_logs import HISTORY, METRICS, run_log

CONFIG = "config.yaml"
LARGEST = 1e300
"""Limit that values drawn on the page are below."""


@dataclass(frozen=True)
class RunFolder:
    """A run, as its folder tells it."""

    path: Path
    config: TrainConfig
    metrics: list[dict[str, Any]]
    """Lines of `metrics.jsonl`; a number that isn't finite is None."""
    history: list[dict[str, Any]]
    """Lines of `history.jsonl`: `event` is `start` or `end`."""
    written: datetime
    """UTC: when the run last wrote a line."""

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [line for line in self.history if line["event"] == "start"]

    @property
    def step(self) -> int:
        """Last step that is known of."""
        return max((line["step"] for line in [*self.metrics, *self.history[-1:]]), default=0)

    def column(self, name: str) -> list[tuple[int, float | None]]:
        """Return (step, value) of every line that holds `name`."""
        return [(line["step"], line[name]) for line in self.metrics if name in line]


def read_run(path: Path) -> RunFolder:
    """Read what the folder of a run says; damaged lines of its logs are left out.

    Raises:
        UserError: no run's folder, or a file in it isn't what it is called.
    """
    check_run_folder(path)
    check_links(path)
    config = from_yaml(read_text(path / CONFIG), str(path / CONFIG))
    files = [path / name for name in (METRICS, HISTORY) if (path / name).exists()]
    metrics = [{key: _finite(value) for key, value in line.items()} for line in run_log(path, METRICS).read()]
    written = datetime.fromtimestamp(max(file.stat().st_mtime for file in files), timezone.utc)
    return RunFolder(path, config, metrics, run_log(path, HISTORY).read(), written)


def check_run_folder(path: Path) -> None:
    """Raise a UserError unless `path` is a run's folder; names runs that lie inside it."""
    if not path.is_dir():
        raise UserError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
    missing = [] if (path / CONFIG).exists() else [CONFIG]
    if not any((path / name).exists() for name in (METRICS, HISTORY)):
        missing.append(METRICS)
    if missing:
        inside = sorted(found.parent.name for found in path.glob(f"*/{METRICS}"))
        hint = f"; runs inside it: {', '.join(inside[:5])}" if inside else ""
        raise UserError(f"{path}: not a run's folder (no {' and no '.join(missing)} in it){hint}")


def _finite(value: Any) -> Any:
    """Return a value as a number: `metrics.jsonl` writes NaN and infinities as text; what else isn't a
    number there is no value either."""
    return value if type(value) in (int, float) and abs(value) < LARGEST else None
