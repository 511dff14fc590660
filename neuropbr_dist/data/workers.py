"""Loader processes: what they need, whether they live, and an end to any wait for them."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from neuropbr_dist.data.load import MORE_SHARED
from neuropbr_dist.errors import UserError
from neuropbr_dist.processes import ignore_stop_signals

POLL_S = 1.0
"""Interval at which a wait for a batch looks whether its loader processes live and whether the run is to stop."""
LONGEST_SOCKET = 107
"""Characters of a Unix socket's path; processes hand each other memory through one in the temporary folder."""
SOCKET_NAME = "/pymp-abcdefgh/listener-abcdefgh"
HANGS_S, STOPPED_S, ENDS_S = 30.0, 5.0, 10.0
"""Limits: to fetch a batch's memory; to fetch it where the run is to stop; for loader processes to end."""


class Interrupted(Exception):
    """The run is to stop, and no batch had come by then."""


class Guard(threading.Thread):
    """Kills loader processes that a wait hangs on where nothing else can end it.

    torch fetches a batch's memory over a socket without a time limit: where a process is stopped just before (SIGSTOP,
    a frozen container), the wait is deaf to signals. On a GPU the thread that pins memory waits so, see `end_workers`.

    Args:
        workers: the processes.
        stopped: whether the run is to stop.
        limit_s: seconds that one call of `waiting` may take.
    """

    def __init__(self, workers: Sequence[Any], stopped: Callable[[], bool], limit_s: float) -> None:
        super().__init__(daemon=True, name="loader guard")
        self.workers, self.stopped, self.limit_s = workers, stopped, limit_s
        self.fired = False
        self._since: float | None = None
        self._done = threading.Event()
        if workers:
            self.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Watch over what is done inside: it hangs if it takes too long."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def run(self) -> None:
        """Look every `POLL_S`; twice too long in a row: this process may itself have been stopped meanwhile."""
        too_long = 0
        while not self._done.wait(POLL_S) and too_long < 2:
            since, limit = self._since, min(self.limit_s, STOPPED_S) if self.stopped() else self.limit_s
            hangs = since is not None and time.monotonic() - since > limit
            too_long = too_long + 1 if hangs else 0
        if too_long == 2:
            self.fired = True
            for worker in self.workers:
                worker.kill()

    def end(self) -> None:
        """End the watch: nothing is waited for any longer."""
        self._done.set()


def workers_of(batches: object) -> Sequence[Any]:
    """Return the loader processes; none where this process loads."""
    return getattr(batches, "_workers", [])


def check_sockets() -> None:
    """Raise a UserError where loader processes couldn't hand over what they load: they would be waited for in vain."""
    longest = LONGEST_SOCKET - len(SOCKET_NAME)
    if len(os.fsencode(tempfile.gettempdir())) > longest:
        raise UserError(
            f"TMPDIR = {tempfile.gettempdir()}: too long a path for the sockets of loader processes; set TMPDIR to one of "
            f"at most {longest} characters, or data.num_workers = 0"
        )


def end_workers(batches: object) -> None:
    """End the loader processes, also those that are stuck or stopped."""
    workers = workers_of(batches)
    if not workers:
        return
    # A thread that pins what a stopped process was to hand over is waited for without end.
    late = threading.Timer(ENDS_S, lambda: [worker.kill() for worker in workers])
    late.start()
    try:
        batches._shutdown_workers()  # type: ignore[attr-defined]  # what its `__del__` does, too late here
    finally:
        late.cancel()
        for worker in workers:
            worker.kill()


def check_wanted(batches: Any, stopped: Callable[[], bool]) -> None:
    """Raise what a wait ended in that the guard has cut off."""
    if stopped():
        raise Interrupted from None
    raise UserError(
        f"loader processes {pids_of(batches)} hung while they handed over a batch, and were ended: stopped from outside "
        "(SIGSTOP, a frozen container)?"
    ) from None


def check_alive(batches: Any, error: Exception) -> None:
    """Raise the error of a wait that isn't just one of `POLL_S`: a loader process that is gone is named."""
    for worker in workers_of(batches):
        if worker.exitcode:
            number = -worker.exitcode
            killed = (
                f"was killed by {signal.Signals(number).name}" if number > 0 else f"ended with code {-number}"
            )
            remedy = "out of memory? fewer data.num_workers, or a smaller data.prefetch_factor or data.cache_mib, take less"
            raise UserError(
                f"loader process {worker.pid} {killed}; {MORE_SHARED if number == signal.SIGBUS else remedy}"
            ) from None
    if "timed out" not in str(error):
        raise error


def pids_of(batches: Any) -> str:
    """Return the numbers of the loader processes, for a person."""
    return ", ".join(str(worker.pid) for worker in workers_of(batches))


def start_worker(_worker: int) -> None:
    """Leave stop signals to the training process and take one thread: a loader process's first act."""
    ignore_stop_signals()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
