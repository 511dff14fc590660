"""When must I stop: signals set a flag, ranks agree at the step boundary."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SAME_SIGNAL_S = 5.0  # Slurm and a forwarding trap deliver one warning twice, 4 ms apart (seen)
FORCED_EXIT = 75  # EX_TEMPFAIL: try again
SIGNAL, TIME_LIMIT, FAILED_WRITE = "signal", "time limit", "failed write"
REASONS = (None, SIGNAL, TIME_LIMIT, FAILED_WRITE)
GOES_ON = (SIGNAL, TIME_LIMIT)
"""Stops after which the run wants another start of its job."""


class StopFlag:
    """Set by the first signal or by `request`; a second signal more than 5 s later ends the process at once.

    Agreement costs no blocking: the wishes of step k are reduced while step k + 1
    runs, on the host (gloo), so that every rank stops, or saves, at the same boundary.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        """This rank's signal, by name."""
        self.save_agreed = False
        """Some rank called `request_save` before the boundary that `agreed` told of; the same on every rank."""
        self._wish = 0  # index of REASONS
        self._save = False
        self._first = 0.0
        self._wishes = torch.zeros(2, dtype=torch.int32)
        self._work: dist.Work | None = None
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._first = signal.Signals(number).name, now
            self.request(SIGNAL)
        elif now - self._first > SAME_SIGNAL_S:
            os.write(sys.stderr.fileno(), b"second stop signal: leaving now, the last checkpoint stands\n")
            os._exit(FORCED_EXIT)

    def request(self, reason: str) -> None:
        """Ask for a stop; `reason` is one of `REASONS`, of which the last that any rank gives counts."""
        self._wish = max(self._wish, REASONS.index(reason))

    def request_save(self) -> None:
        """Ask for a save at the next boundary that all ranks agree on."""
        self._save = True

    def agreed(self) -> str | None:
        """Called by every rank at every step boundary; why to stop here, the same on every rank at once."""
        wishes, self._save = torch.tensor([self._wish, self._save], dtype=torch.int32), False
        if dist.is_initialized() and dist.get_world_size() > 1:
            if self._work is not None:
                self._work.wait()
            reduced, self._wishes = self._wishes, wishes
            self._work = dist.all_reduce(self._wishes, op=dist.ReduceOp.MAX, async_op=True)
            wishes = reduced
        reason, save = wishes.tolist()
        self.save_agreed = bool(save)
        return REASONS[reason]


def ignore_stop_signals() -> None:
    """For loader workers: the training process decides when they end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
