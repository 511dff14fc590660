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


class StopFlag:
    """Set by the first signal; a second one more than 5 s later ends the process at once.

    Agreement costs no blocking: the flag of step k is reduced while step k + 1
    runs, on the host (gloo), so that every rank stops at the same boundary.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._first = 0.0
        self._flag = torch.zeros((), dtype=torch.int32)
        self._work: dist.Work | None = None
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._first = signal.Signals(number).name, now
        elif now - self._first > SAME_SIGNAL_S:
            os.write(sys.stderr.fileno(), b"second stop signal: leaving now, the last checkpoint stands\n")
            os._exit(FORCED_EXIT)

    def request(self, reason: str) -> None:
        """Stop as if signalled."""
        if self.signal is None:
            self.signal, self._first = reason, time.monotonic()

    def agreed(self) -> bool:
        """Called by every rank at every step boundary; True on all ranks at once."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self.signal is not None
        stop = False
        if self._work is not None:
            self._work.wait()
            stop = bool(self._flag)
        self._flag = torch.tensor(int(self.signal is not None), dtype=torch.int32)
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, async_op=True)
        return stop


def ignore_stop_signals() -> None:
    """For loader workers: the training process decides when they end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
