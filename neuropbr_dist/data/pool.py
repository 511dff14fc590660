"""Work on many files, spread over processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from neuropbr_dist.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 4
"""Items handed to a process at a time; as many are redone a process after an interruption."""


def usable_cores() -> int:
    """Cores that this process may run on: a batch system often gives fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    start: Callable[..., None] | None = None,
    arguments: tuple = (),
) -> Iterator[R]:
    """Results in the order of `items`; up to one worker stays in this process.

    Args:
        start: called with `arguments` in every working process, first.

    Raises:
        UserError: a process was killed; or what `function` raises.
    """
    if workers <= 1:
        if start:
            start(*arguments)
        yield from map(function, items)
        return
    # spawn: a fork of a process with threads (torch's) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(start, arguments))
    try:
        yield from pool.map(function, items, chunksize=CHUNK)
    except BrokenProcessPool as error:
        raise UserError(
            "a working process was killed (out of memory?); start the same command again, "
            "with fewer --workers if need be"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(start: Callable[..., None] | None, arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which shuts the pool down
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start:
        start(*arguments)


def _end_with_parent() -> None:
    # A killed parent closes no queue: its workers would wait for work for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
