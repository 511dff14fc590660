"""Micro-batches of uint8 samples, in the order of the global cursor."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader, Dataset

from neuropbr_dist.config import DataConfig
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.load import load_batch
from neuropbr_dist.data.order import SampleOrder, Slot, rank_share, step_micro_batches
from neuropbr_dist.data.sources import Entry, Source
from neuropbr_dist.data.workers import (
    HANGS_S,
    POLL_S,
    Guard,
    Interrupted,
    check_alive,
    check_sockets,
    check_wanted,
    end_workers,
    pids_of,
    start_worker,
    workers_of,
)
from neuropbr_dist.errors import UserError

log = logging.getLogger(__name__)

SAY_AFTER_S = 60.0


class SlotDataset(Dataset):
    """Slots -> the micro-batch of these samples of `entries`, or the `UserError` that names what is
    wrong with their files.

    Returned, not raised: a worker's exception would reach the user inside a traceback.
    """

    def __init__(
        self,
        source: Source,
        entries: Sequence[Entry],
        augmentation: Augmentation | None,
        alignment: Alignment | None,
        relight: int | None,
        rows: tuple[int, int] | None,
    ) -> None:
        self.source, self.entries = source, entries
        self.augmentation, self.alignment = augmentation, alignment
        self.relight, self.rows = relight, rows

    def __len__(self) -> int:
        return len(self.entries)

    def __getitems__(self, slots: Sequence[Slot]) -> MicroBatch | UserError:
        try:
            return load_batch(
                self.source, self.entries, slots, self.augmentation, self.alignment, self.relight, self.rows
            )
        except UserError as error:
            return error


def as_it_is(batch: MicroBatch | UserError) -> MicroBatch | UserError:
    """Return a batch as it is, as the loader's collate function: `__getitems__` has made it."""
    return batch


def training_slots(
    order: SampleOrder, cursor: int, world: int, rank: int, batch_size: int
) -> Iterator[list[Slot]]:
    """Yield this rank's micro-batches from a cursor to the end of the run, as lists of slots."""
    for at in range(cursor, order.total_samples, order.global_batch):
        yield from step_micro_batches(order, at, world, rank, batch_size)


def validation_slots(n: int, world: int, rank: int, batch_size: int) -> list[list[Slot]]:
    """Return this rank's share of `n` samples, each once over all ranks, as micro-batches.

    Every rank gets equally many of one size, filled up with weight 0, so that collectives and shapes match.
    """
    start, length = rank_share(n, world, rank)
    largest = math.ceil(n / world)
    size = min(batch_size, largest)
    slots = [Slot(0, i, 1.0) for i in range(start, start + length)]
    slots += [Slot(0, min(start, n - 1), 0.0)] * (math.ceil(largest / size) * size - length)
    return [slots[i : i + size] for i in range(0, len(slots), size)]


@contextmanager
def batches_of(
    data: DataConfig,
    source: Source,
    entries: Sequence[Entry],
    slots: Iterable[list[Slot]],
    device: torch.device,
    workers: int | None = None,
    augmentation: Augmentation | None = None,
    alignment: Alignment | None = None,
    relight: int | None = None,
    rows: tuple[int, int] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    limit_s: float = math.inf,
) -> Iterator[Iterator[MicroBatch]]:
    """Yield this rank's micro-batches in the order of `slots`, read ahead by processes until the `with` ends.

    The processes end there and nowhere else: left to the interpreter's exit, which a traceback's
    frames do, they would be sent SIGTERM, which they ignore, and be waited for without end.

    Args:
        slots: which of `entries` each micro-batch holds.
        device: where they go; for a GPU they lie in pinned memory.
        workers: None: `data.num_workers`.
        augmentation, alignment, relight, rows: see `load_batch`.
        stopped: whether a wait for a batch is to end.
        limit_s: seconds that a batch may take.

    Raises:
        UserError: while iterating: a file can't be read, or holds what it may not; a loader process was killed, or none
            gave a batch within `limit_s`.
        Interrupted: while iterating: `stopped` said so before a batch came.
    """
    workers = data.num_workers if workers is None else workers
    if workers:
        check_sockets()
    loader = DataLoader(
        SlotDataset(source, entries, augmentation, alignment, relight, rows),
        batch_sampler=slots,  # type: ignore[arg-type]
        collate_fn=as_it_is,  # type: ignore[arg-type]  # not a list: `__getitems__` made the batch
        num_workers=workers,
        prefetch_factor=data.prefetch_factor if workers else None,
        pin_memory=data.pin_memory and device.type == "cuda",
        worker_init_fn=start_worker,
        timeout=POLL_S if workers else 0,
    )
    batches = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises wherever the program is when a process dies; `good` looks where it can be told.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    guard = Guard(workers_of(batches), stopped, min(limit_s, HANGS_S))
    try:
        yield checked_batches(batches, stopped, limit_s, guard)
    finally:
        guard.end()
        end_workers(batches)


def checked_batches(
    batches: Iterator[MicroBatch | UserError],
    stopped: Callable[[], bool] = lambda: False,
    limit_s: float = math.inf,
    guard: Guard | None = None,
) -> Iterator[MicroBatch]:
    """Yield what comes; see `batches_of`. Raises an error where one stands in a batch's place."""
    guard = guard or Guard([], stopped, limit_s)
    waited, said = 0.0, SAY_AFTER_S
    while True:
        try:
            with guard.waiting():
                batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if guard.fired:
                check_wanted(batches, stopped)
            check_alive(batches, error)
            waited += POLL_S
            if stopped():
                raise Interrupted from None
            if waited >= said:
                log.warning(f"No batch for {waited:.0f} s: waiting for loader processes {pids_of(batches)}")
                said *= 2
            if waited >= limit_s:
                raise UserError(
                    f"no batch for {limit_s:.0f} s (half of training.timeout_minutes): loader processes {pids_of(batches)} "
                    "hang, perhaps in a file system that doesn't answer"
                ) from None
            continue
        if isinstance(batch, UserError):
            raise batch
        waited, said = 0.0, SAY_AFTER_S
        yield batch
