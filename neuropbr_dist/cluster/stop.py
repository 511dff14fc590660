"""Agreement on when to stop: signals set a flag, ranks agree at the step boundary."""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import threading
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from neuropbr_dist.processes import STOP_SIGNALS as SIGNALS

SAME_SIGNAL_S = 5.0  # Slurm and a forwarding trap deliver one warning twice, 4 ms apart (seen)
KILLED_AFTER_S = 30.0
FORCED_EXIT = 75  # EX_TEMPFAIL: try again


class StopReason(Enum):
    """Reason why a run stops early, in the words of the console and of `history.jsonl`; the weightiest last."""

    AFTER_EPOCHS = "--stop-after-epochs"
    AFTER_STEPS = "--stop-after-steps"
    SIGNAL = "signal"
    TIME_LIMIT = "time limit"
    ORPHANED = "launcher gone"
    FAILED = "failed"

    @property
    def requeues(self) -> bool:
        """Whether the run wants another start of its job: it was stopped from outside."""
        return self in (StopReason.SIGNAL, StopReason.TIME_LIMIT, StopReason.ORPHANED)

    def __str__(self) -> str:
        return self.value


BY_WEIGHT = (None, *StopReason)
"""Stop reasons by index, which ranks agree on: the largest that any of them has counts. None: no stop."""


def launcher_patience(launcher: str) -> float | None:
    """Return the seconds that a launcher gives its ranks between SIGTERM and SIGKILL; None: it doesn't kill them."""
    if launcher not in ("torchrun", "deepspeed"):
        return None
    told = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "") if launcher == "torchrun" else ""
    parent = Path(f"/proc/{os.getppid()}/cmdline")
    words = parent.read_text(errors="replace").replace("\0", " ") if parent.exists() else ""
    flag = re.search(r"--shutdown[-_]timeout[= ](\d+)", words)
    return float(flag[1] if flag else told if told.isdecimal() else KILLED_AFTER_S)


class StopFlag:
    """Flag set by the first signal, by the end of this process's launcher or by `request`.

    A second signal more than 5 s later ends the process at once.

    Ranks agree at every boundary, on the host (gloo): 8 bytes while the device works on what is queued. So a run
    stops at the end of the step in which the signal came.

    Python runs a handler once its main thread is back from C++, which never comes back from waiting for a dead
    peer. So the handlers do nothing: a thread reads the signals from the wakeup descriptor.

    An ignored SIGHUP stays so: that is what `nohup` does. Others are taken up again: a launcher that ignores the
    warning of a job's end for itself (`slurm/elastic.sbatch`) leaves its ranks with it ignored.

    Args:
        launched: another process has started this one for the run, and restarts or ends it: without it this one ends.
    """

    def __init__(self, launched: bool = False) -> None:
        self._parent = os.getppid() if launched else None
        self.signal: str | None = None
        """This rank's signal, by name."""
        self.signalled_at = math.nan
        """`time.monotonic` of it."""
        self.save_agreed = False
        """Some rank called `request_save` before the boundary that `agreed` told of; the same on every rank."""
        self._wish = 0  # index of BY_WEIGHT
        self._save = False
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        threading.Thread(target=self._listen, name="stop-signals", daemon=True).start()
        self._wakeup = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        heard = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
        self._handlers = {number: signal.signal(number, handled_elsewhere) for number in heard}

    @property
    def orphaned(self) -> bool:
        """Whether the launcher has ended and left this process."""
        return self._parent is not None and os.getppid() != self._parent

    @property
    def is_set(self) -> bool:
        """Whether something on this rank asks for a stop at the next boundary."""
        return self.signal is not None or self._wish > 0 or self.orphaned

    def close(self) -> None:
        """Give the signals back. Not after one has come: its sender may send it again until this process has ended."""
        if self.signal is None:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
            self._outbox.close()  # ends the thread

    def _listen(self) -> None:
        while numbers := self._inbox.recv(64):
            for number in numbers:
                # A child's end, or what submitit's handler has taken over again.
                if signal.getsignal(number) is not handled_elsewhere:
                    continue
                now = time.monotonic()
                if self.signal is None:
                    self.signalled_at, self.signal = now, signal.Signals(number).name
                elif now - self.signalled_at > SAME_SIGNAL_S:
                    with suppress(OSError):  # a closed terminal
                        os.write(2, b"second stop signal: leaving now, the last checkpoint stands\n")
                    os._exit(FORCED_EXIT)

    def request(self, reason: StopReason) -> None:
        """Ask for a stop; of all ranks' reasons the weightiest counts."""
        self._wish = max(self._wish, BY_WEIGHT.index(reason))

    def request_save(self) -> None:
        """Ask for a save at the next boundary that all ranks agree on."""
        self._save = True

    def agreed(self) -> StopReason | None:
        """Return why to stop at this step boundary, the same on every rank at once. Collective."""
        if self.signal:
            self.request(StopReason.SIGNAL)
        if self.orphaned:
            self.request(StopReason.ORPHANED)
        wish = self._wish
        wishes, self._save = torch.tensor([wish, self._save], dtype=torch.int32), False
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(wishes, op=dist.ReduceOp.MAX)
        reason, save = wishes.tolist()
        self.save_agreed = bool(save)
        return BY_WEIGHT[reason]


def handled_elsewhere(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: a handler that only keeps a signal from ending the process; see `StopFlag`."""
