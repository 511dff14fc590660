"""Work on many files, spread over processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from neuropbr_dist.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a closed terminal, a person, a launcher or a batch system sends to end a run."""

CHUNK = 4
"""Items handed to a process at a time, unless told; as many are redone a process after an interruption."""


def usable_cores() -> int:
    """Return the number of cores that this process may run on: a batch system often gives fewer than the
    machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ignore_stop_signals() -> None:
    """Ignore stop signals, in processes that read ahead of training: it decides when they end."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_signals_held() -> Iterator[None]:
    """Hold stop signals to this thread back until the end. Programs that are started inside never get any: none is lost
    here, as it would be if they were ignored meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_parallel(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    start: Callable[..., None] | None = None,
    arguments: tuple = (),
    chunk: int = CHUNK,
) -> Iterator[tuple[T, R]]:
    """Yield each item with its result, as they are done; up to one worker stays in this process.

    Items are asked for as they are needed, twice as many chunks ahead as there are workers. After a `UserError` nothing new is begun, but all that was done is handed out before it is raised.

    Args:
        start: called with `arguments` in every working process, first.

    Raises:
        UserError: a process was killed, or could not begin (it imports the script that was started, which therefore must
            be a file, and do its work below `if __name__ == "__main__"`); or what `function` raises.
    """
    if workers <= 1:
        if start:
            start(*arguments)
        for item in items:
            yield item, function(item)
        return
    # spawn: a fork of a process with threads (torch's) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(start, arguments))
    try:
        yield from _chunk_by_chunk(pool, function, items, workers, chunk)
    except BrokenProcessPool as error:
        raise UserError(
            "a working process was killed (out of memory?), or could not begin, which it has said itself, above; start "
            "the same command again, with fewer --workers where it takes them"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _chunk_by_chunk(
    pool: ProcessPoolExecutor, function: Callable[[T], R], items: Iterable[T], workers: int, size: int
) -> Iterator[tuple[T, R]]:
    remaining = iter(items)
    under_way: dict[Future[tuple[list[R], UserError | None]], list[T]] = {}
    failure: UserError | None = None
    more = True
    while under_way or (more and failure is None):
        while more and failure is None and len(under_way) < 2 * workers:  # none waits for work
            items_now = list(islice(remaining, size))
            more = len(items_now) == size
            if items_now:
                under_way[pool.submit(_do, function, items_now)] = items_now
        for future in wait(under_way, return_when=FIRST_COMPLETED).done if under_way else ():
            chunk = under_way.pop(future)
            results, error = future.result()
            yield from zip(chunk, results, strict=False)  # fewer results, if one of them failed
            failure = failure or error
    if failure is not None:
        raise failure


def _do(function: Callable[[T], R], chunk: list[T]) -> tuple[list[R], UserError | None]:
    """Return the results up to the first `UserError`, and that, in a working process."""
    results: list[R] = []
    for item in chunk:
        try:
            results.append(function(item))
        except UserError as error:
            return results, error
    return results, None


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
