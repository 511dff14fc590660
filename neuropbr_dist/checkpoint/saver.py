"""Saving behind training's back: one save in flight, written by a thread."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from neuropbr_dist.checkpoint.folders import LATEST, retain
from neuropbr_dist.checkpoint.fragments import StagedState, reserve, stage
from neuropbr_dist.checkpoint.lock import RunLock
from neuropbr_dist.checkpoint.store import write
from neuropbr_dist.fragment import Fragment
from neuropbr_dist.ranks import is_rank_0, on_rank_0

FIRST_SAVE_S = 10.0
SLOW_DISK = 1e8
"""Bytes a second and rank. The first save is reckoned with, as long as none is measured."""


@dataclass
class SaveTiming:
    """Durations of a save's parts in seconds, and its size."""

    waited_s: float
    """Training was held: the save before (or, at the first, the host memory) wasn't ready."""
    held_s: float
    """Training was held: copy to host memory."""
    behind_s: float = 0.0
    """Behind training: written, flushed and renamed by all ranks."""
    bytes: int = 0
    """All files of the checkpoint."""


class AsyncSaver:
    """Stages in the caller's thread, then writes and tidies up in another, over a gloo group of its own.

    A thread, never a process: DCP's process mode corrupts tensors that are pieces of others.
    Made on all ranks, while no save is under way and with the run's lock held. All methods but `check`
    and `failed` are collective: a failed save raises on all ranks at the same call.

    Args:
        folder: the run's folder.
        keep_latest: number of newest good saves that stay, besides those with a name.
        lock: the run's lock; a run that lost it stops saving.
        timeout: limit on any one collective of a save. None: torch's.
        on_saved: told the folder, names and timing of a save that is on disk; first rank only, in the writing thread.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep_latest: int = 2,
        lock: RunLock | None = None,
        timeout: datetime.timedelta | None = None,
        on_saved: Callable[[Path, Sequence[str], SaveTiming], None] = lambda _path, _links, _timing: None,
    ) -> None:
        self.folder, self.keep_latest, self.lock = Path(folder), keep_latest, lock
        self.on_saved = on_saved
        distributed = dist.is_available() and dist.is_initialized()
        self._group: dist.ProcessGroup | None = None
        if distributed:
            self._group = dist.new_group(backend="gloo", timeout=timeout)  # type: ignore[assignment]
        self._verified: set[Path] = set()
        self._staged: StagedState | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: Future[Path] | None = None
        self._reserved: Future[StagedState] | None = None
        self.longest: float | None = None
        """Seconds of the longest save so far, from the call until it was on disk; None: none yet."""
        self._first = FIRST_SAVE_S

    def prepare(self, fragments: Iterable[Fragment]) -> None:
        """Allocate the host memory that saves of such fragments need, in the background."""
        fragments = list(fragments)
        self._first = FIRST_SAVE_S + sum(f.data.nbytes for f in fragments) / SLOW_DISK
        self._reserved = self._pool.submit(reserve, fragments)

    @property
    def expected(self) -> float:
        """Seconds that the next save takes at most, by those before; a guess from its size until there is one."""
        return self._first if self.longest is None else self.longest

    def save(
        self,
        name: str,
        fragments: Iterable[Fragment],
        state: dict[str, Any],
        config_yaml: str,
        *,
        links: Sequence[str] = (LATEST,),
    ) -> None:
        """Wait for the save before, copy `fragments` to host memory, and write them in the background.

        Arguments as for `store.write`; `state` is copied.

        Raises:
            UserError: the save before failed.
        """
        fragments = list(fragments)
        for device in {f.data.device for f in fragments if f.data.is_cuda}:
            torch.cuda.synchronize(device)  # the step that is still running holds nobody up
        began = time.monotonic()
        self.wait()
        if self._reserved is not None:
            self._staged, self._reserved = self._reserved.result(), None
        ready = time.monotonic()
        self._staged = stage(fragments, reuse=self._staged)
        timing = SaveTiming(waited_s=ready - began, held_s=time.monotonic() - ready)
        state = json.loads(json.dumps(state))  # what JSON can't hold is refused here, not in the thread
        self._job = self._pool.submit(
            self._write, self._staged, name, state, config_yaml, list(links), timing
        )

    def wait(self) -> Path | None:
        """Wait until the save in flight is on disk; return its folder, or raise what went wrong."""
        job, self._job = self._job, None
        return job.result() if job is not None else None

    @property
    def failed(self) -> bool:
        """Whether the save in flight has ended in an error on this rank. Ranks learn it at different times."""
        return self._job is not None and self._job.done() and self._job.exception() is not None

    def check(self) -> None:
        """Raise the error of the save in flight if it has ended in one; otherwise return at once.

        Not collective. With several ranks let them agree on `failed` at a step's end, then `wait`.
        """
        if self.failed:
            self.wait()

    def leave(self, seconds: float) -> None:
        """Give the save in flight so long: another error ends the run, and this one's would hide it.

        Not collective; nor need all ranks come here for it: their threads write.
        """
        if self._job is not None:
            wait_for([self._job], seconds)

    def close(self) -> None:
        """Wait for the save in flight, then end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _write(
        self,
        staged: StagedState,
        name: str,
        state: dict[str, Any],
        config_yaml: str,
        links: Sequence[str],
        timing: SaveTiming,
    ) -> Path:
        began = time.monotonic()
        if self.lock is not None:
            on_rank_0(self.lock.check, self._group)
        path = write(staged, self.folder, name, state, config_yaml, links=links, process_group=self._group)
        if is_rank_0(self._group):
            timing.behind_s = time.monotonic() - began
            timing.bytes = sum(file.stat().st_size for file in path.iterdir())
            self.longest = max(self.longest or 0.0, timing.held_s + timing.behind_s)
            self.on_saved(path, links, timing)
        on_rank_0(lambda: retain(self.folder, self.keep_latest, verified=self._verified), self._group)
        return path
