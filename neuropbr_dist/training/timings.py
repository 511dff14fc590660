"""Durations of a start's phases."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import torch

from neuropbr_dist.monitor import RunLog
from neuropbr_dist.monitor.run_logs import TIMINGS

log = logging.getLogger(__name__)


class StartUp:
    """Seconds of each phase between the process's start and the end of its first step."""

    def __init__(self) -> None:
        self.open = True
        self.phases: dict[str, float] = {}
        self._last = time.monotonic() - process_age()

    def mark(self, phase: str) -> None:
        """Note that `phase` has just ended."""
        if self.open:
            now = time.monotonic()
            self.phases[phase] = round(now - self._last, 3)
            self._last = now

    def first_step(self, device: torch.device, run_log: RunLog, step: int) -> None:
        """Note that step `step` of the run is done; where it is this start's first, say and write how long
        that took."""
        if not self.open:
            return
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.mark("first step")
        self.open = False
        log.info(str(self))
        run_log.line(TIMINGS, {"step": step, "start": self.phases})

    def __str__(self) -> str:
        parts = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in self.phases.items())
        return f"Start-up: {sum(self.phases.values()):.1f} s: {parts}"


def process_age() -> float:
    """Return seconds since this process began; 0 where the system doesn't tell (no /proc)."""
    if not os.path.exists("/proc/self/stat"):
        return 0.0
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # the name may hold blanks
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, float(Path("/proc/uptime").read_text().split()[0]) - began)
