"""End of the allocation, and how early a run must stop to be saved by then."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

STEPS = 2
"""The one that begins now, and one that a GPU has yet to do: the host runs ahead of it."""
RECENT_STEPS = 20
SAVES = 2
"""A save may be in flight that the last one waits for."""
ENDING_S = 20.0
"""Seconds for the ranks to leave and the batch script to requeue the job."""
LAST_RESORT_S = 10.0
"""Seconds before the end at which a run that still hasn't left is ended."""
ASK_S = 10


def allocation_end(env: Mapping[str, str] = os.environ) -> float | None:
    """Return the end of this job's allocation in Unix seconds. None: no Slurm, no limit, or Slurm doesn't say.

    Newer versions of Slurm tell the job (`SLURM_JOB_END_TIME`), others are asked. An end that has passed is
    another job's, whose variables a shell has kept.
    """
    told = env.get("SLURM_JOB_END_TIME", "")
    if told.isdecimal() and float(told) > time.time():
        return float(told)
    return ask_slurm(env)


def ask_slurm(env: Mapping[str, str] = os.environ) -> float | None:
    """Return `allocation_end` as the controller has it now; an administrator may have moved it."""
    if not env.get("SLURM_JOB_ID"):
        return None
    command = ["squeue", "--noheader", "--jobs", env["SLURM_JOB_ID"], "--format", "%e"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S).stdout.split()
        # An array's tasks come as several lines only when asked for by the array's own number.
        return datetime.fromisoformat(answer[0]).timestamp()
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None  # no squeue in the container, no answer, "NONE"


class Deadline:
    """Rank 0's clock: says when to stop so that the run is saved before its allocation ends.

    The margin is the run's own: two of its longest recent steps, its longest validation, two of its longest
    saves, and 20 s to leave.

    Args:
        end: Unix seconds, or None for no end.
        ask: the end as it stands now; asked once the clock would stop the run. None: unknown.
        now: clock, Unix seconds.
    """

    def __init__(
        self,
        end: float | None,
        ask: Callable[[], float | None] = ask_slurm,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.end, self._ask, self._now = end, ask, now
        self._steps: deque[float] = deque(maxlen=RECENT_STEPS)
        self._boundary: float | None = None
        self._paused = 0.0
        self._longest_pause = 0.0

    @property
    def longest_step(self) -> float:
        """Seconds of the longest recent step."""
        return max(self._steps, default=0.0)

    def pause(self, seconds: float) -> None:
        """Don't count `seconds` of validation since the last boundary as step time."""
        self._paused += seconds
        self._longest_pause = max(self._longest_pause, seconds)

    def margin(self, save_seconds: float) -> float:
        """Return how many seconds before the end to stop.

        Args:
            save_seconds: a save, from the call until it is on disk.
        """
        return STEPS * self.longest_step + self._longest_pause + SAVES * save_seconds + ENDING_S

    def reached(self, save_seconds: float) -> bool:
        """Return whether to stop; called at every step boundary."""
        now = self._now()
        if self._boundary is not None:
            self._steps.append(max(0.0, now - self._boundary - self._paused))
        self._boundary, self._paused = now, 0.0
        if self.end is None or now < self.end - self.margin(save_seconds):
            return False
        moved = self._ask()
        if moved is None or moved <= self.end:
            return True
        self.end = moved
        return self.reached(save_seconds)


@contextmanager
def last_resort(
    end: float | None, leaving: Callable[[], None], ask: Callable[[], float | None] = ask_slurm
) -> Iterator[None]:
    """End this process 10 s before `end` if it is still in here: it hangs. Slurm doesn't requeue what it ends itself.

    Args:
        end: of the allocation, Unix seconds, or None for no end.
        leaving: called before.
        ask: the end as it stands by then. None: unknown.
    """
    over = threading.Event()

    def watch(moment: float) -> None:
        while True:
            if over.wait(max(0.0, moment - LAST_RESORT_S - time.time())):
                return
            moved = ask()
            if moved is None or moved <= moment:
                break
            moment = moved
        try:
            leaving()
        finally:
            os.write(2, b"the allocation ends and the run hangs: leaving now, the last checkpoint stands\n")
            os._exit(0)  # with any other code torchrun would start its ranks again

    if end is not None:
        threading.Thread(target=watch, args=(end,), name="last-resort", daemon=True).start()
    try:
        yield
    finally:
        over.set()


class Every:
    """A wish that comes every `minutes`, counted from the last time it was met. None: never."""

    def __init__(self, minutes: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self.minutes, self._now, self._last = minutes, now, now()

    def due(self) -> bool:
        """Return whether the wish has come: true once an interval."""
        if self.minutes is None or self._now() - self._last < 60 * self.minutes:
            return False
        self.met()
        return True

    def met(self) -> None:
        """Count from now: the wish has just been met, for another reason perhaps."""
        self._last = self._now()
