"""Micro-batches of uint8 samples, in the order of the global cursor."""

from __future__ import annotations

import logging
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from neuropbr_dist.config import DataConfig
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.load import MORE_SHARED, load_batch
from neuropbr_dist.data.order import SampleOrder, Slot, rank_share, step_micro_batches
from neuropbr_dist.data.sources import Entry, Source
from neuropbr_dist.errors import UserError
from neuropbr_dist.processes import ignore_stop_signals

log = logging.getLogger(__name__)


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
    ) -> None:
        self.source, self.entries = source, entries
        self.augmentation, self.alignment, self.relight = augmentation, alignment, relight

    def __len__(self) -> int:
        return len(self.entries)

    def __getitems__(self, slots: Sequence[Slot]) -> MicroBatch | UserError:
        try:
            return load_batch(
                self.source, self.entries, slots, self.augmentation, self.alignment, self.relight
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


POLL_S = 1.0
"""Interval at which a wait for a batch looks whether its loader processes live and whether the run is to stop."""
SAY_AFTER_S = 60.0
LONGEST_SOCKET = 107
"""Characters of a Unix socket's path; processes hand each other memory through one in the temporary folder."""
SOCKET_NAME = "/pymp-abcdefgh/listener-abcdefgh"


HANGS_S, STOPPED_S, ENDS_S = 30.0, 5.0, 10.0
"""Limits: to fetch a batch's memory; to fetch it where the run is to stop; for loader processes to end."""


class Interrupted(Exception):
    """The run is to stop, and no batch had come by then."""


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
        augmentation, alignment, relight: see `load_batch`.
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
        SlotDataset(source, entries, augmentation, alignment, relight),
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
        yield good(batches, stopped, limit_s, guard)
    finally:
        guard.end()
        end_workers(batches)


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


def good(
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
