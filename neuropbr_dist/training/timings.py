"""Where a run's time outside of its steps goes: `timings.jsonl`, one line a start, a save and a stop."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from neuropbr_dist.monitor.run_logs import TIMINGS, run_log
from neuropbr_dist.ranks import is_rank_0

log = logging.getLogger(__name__)


class StartUp:
    """Seconds of each phase between the process's start and the end of its first step."""

    def __init__(self) -> None:
        self.open = True
        self.phases: dict[str, float] = {}
        self._last = time.monotonic() - process_age()

    def mark(self, phase: str) -> None:
        """`phase` has just ended."""
        if self.open:
            now = time.monotonic()
            self.phases[phase] = round(now - self._last, 3)
            self._last = now

    def first_step(self, device: torch.device, folder: Path, step: int) -> None:
        """A step is done, `step` of the run; where it is this start's first, say and write how long that took."""
        if not self.open:
            return
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.mark("first step")
        self.open = False
        log.info(str(self))
        if is_rank_0():
            note_timing(folder, {"step": step, "start": self.phases})

    def __str__(self) -> str:
        parts = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in self.phases.items())
        return f"Start-up: {sum(self.phases.values()):.1f} s: {parts}"


def process_age() -> float:
    """Seconds since this process began; 0 where the system doesn't tell (no /proc)."""
    if not os.path.exists("/proc/self/stat"):
        return 0.0
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # the name may hold blanks
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, float(Path("/proc/uptime").read_text().split()[0]) - began)


def note_timing(folder: Path, record: Mapping[str, Any]) -> None:
    """Append a line to the run's timings.

    Raises:
        UserError: the file can't be written.
    """
    run_log(folder, TIMINGS).append(record)
