"""Saving behind training's back: one save in flight, written by a thread."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist

from neuropbr_dist.checkpoint.folders import LATEST, retain
from neuropbr_dist.checkpoint.fragments import Fragment, StagedState, stage
from neuropbr_dist.checkpoint.lock import RunLock
from neuropbr_dist.checkpoint.ranks import Ranks
from neuropbr_dist.checkpoint.store import write


class AsyncSaver:
    """Stages in the caller's thread, then writes and tidies up in another, over a gloo group of its own.

    A thread, never a process: DCP's process mode corrupts tensors that are pieces of others.
    Made on all ranks, while no save is under way and with the run's lock held. All methods but `check`
    and `failed` are collective: a failed save raises on all ranks at the same call.

    Args:
        folder: the run's folder.
        keep_latest: number of newest good saves that stay, besides those with a name.
        lock: the run's lock; a run that lost it stops saving.
        log: prints warnings; first rank only.
        timeout: limit on any one collective of a save. None: torch's.
        on_saved: told the names of a save that is on disk; first rank only, in the writing thread.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep_latest: int = 2,
        lock: RunLock | None = None,
        log: Callable[[str], None] = print,
        timeout: datetime.timedelta | None = None,
        on_saved: Callable[[Sequence[str]], None] = lambda _links: None,
    ) -> None:
        self.folder, self.keep_latest, self.lock, self.log = Path(folder), keep_latest, lock, log
        self.on_saved = on_saved
        distributed = dist.is_available() and dist.is_initialized()
        self._group: dist.ProcessGroup | None = None
        if distributed:
            self._group = dist.new_group(backend="gloo", timeout=timeout)  # type: ignore[assignment]
        self._verified: set[Path] = set()
        self._staged: StagedState | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: Future[Path] | None = None

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
        self.wait()
        self._staged = stage(list(fragments), reuse=self._staged)
        state = json.loads(json.dumps(state))  # what JSON can't hold is refused here, not in the thread
        self._job = self._pool.submit(self._write, self._staged, name, state, config_yaml, list(links))

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

    def close(self) -> None:
        """Wait for the save in flight, then end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _write(
        self, staged: StagedState, name: str, state: dict[str, Any], config_yaml: str, links: Sequence[str]
    ) -> Path:
        ranks = Ranks(self._group)
        if self.lock is not None:
            ranks.from_first(self.lock.check)
        path = write(staged, self.folder, name, state, config_yaml, links=links, process_group=self._group)
        if ranks.is_first:
            self.on_saved(links)
        ranks.from_first(lambda: retain(self.folder, self.keep_latest, verified=self._verified, log=self.log))
        return path
