"""Micro-batches of uint8 samples, in the order of the global cursor."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from neuropbr_dist.config import DataConfig
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.order import SampleOrder, Slot, plan_step, rank_share
from neuropbr_dist.data.sources import Entry, Source
from neuropbr_dist.errors import UserError
from neuropbr_dist.processes import ignore_stop_signals


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
    ) -> None:
        self.source, self.entries = source, entries
        self.augmentation, self.alignment = augmentation, alignment

    def __len__(self) -> int:
        return len(self.entries)

    def __getitems__(self, slots: Sequence[Slot]) -> MicroBatch | UserError:
        try:
            return load_batch(self.source, self.entries, slots, self.augmentation, self.alignment)
        except UserError as error:
            return error


def load_batch(
    source: Source,
    entries: Sequence[Entry],
    slots: Sequence[Slot],
    augmentation: Augmentation | None = None,
    alignment: Alignment | None = None,
) -> MicroBatch:
    """Samples loaded straight into the batch's own memory, which a worker process shares with its parent.

    Args:
        alignment: which cameras go along; None: none do, and views stay as they are.

    Raises:
        UserError: a file can't be read, or holds what it may not.
    """
    count, side = len(slots), source.size
    views, maps = empty(count * 17 * side * side).split([count * 9 * side * side, count * 8 * side * side])
    views, maps = views.view(count, 3, 3, side, side), maps.view(count, 8, side, side)
    chosen = [entries[slot.index] for slot in slots]
    for i, entry in enumerate(chosen):
        source.load_into(entry, views[i].numpy(), maps[i].numpy())
    turns = []
    if augmentation:
        turns = [augmentation.orientation(s.epoch, e.key) for s, e in zip(slots, chosen, strict=True)]
    cameras = None
    if alignment:
        rows = [alignment.of(source.cameras(e), s.epoch, e.key) for s, e in zip(slots, chosen, strict=True)]
        cameras = torch.from_numpy(np.stack(rows))
    weights = torch.tensor([slot.weight for slot in slots], dtype=torch.float32)
    return MicroBatch(views, maps, weights, [entry.key for entry in chosen], turns, cameras)


def empty(nbytes: int) -> Tensor:
    """Fresh memory, uint8 (nbytes,); in a worker process shared with its parent."""
    if get_worker_info() is None:
        # numpy asks for huge pages, torch doesn't: touching 71 MB for the first time costs 1 ms or 30.
        return torch.from_numpy(np.empty(nbytes, np.uint8))
    # As `default_collate` does: memory that isn't shared yet would be copied on its way to the parent.
    storage = torch.UntypedStorage._new_shared(nbytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (nbytes,))  # type: ignore[call-overload]


def as_it_is(batch: MicroBatch | UserError) -> MicroBatch | UserError:
    """The collate function: `__getitems__` has made the batch."""
    return batch


def training_slots(
    order: SampleOrder, cursor: int, world: int, rank: int, batch_size: int
) -> Iterator[list[Slot]]:
    """Yield this rank's micro-batches from a cursor to the end of the run, as lists of slots."""
    for at in range(cursor, order.total_samples, order.global_batch):
        yield from plan_step(order, at, world, rank, batch_size)


def validation_slots(n: int, world: int, rank: int, batch_size: int) -> list[list[Slot]]:
    """This rank's share of `n` samples, each once over all ranks; every rank gets equally many
    micro-batches of one size, filled up with weight 0, so that collectives and shapes match."""
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
) -> Iterator[Iterator[MicroBatch]]:
    """This rank's micro-batches in the order of `slots`, read ahead by processes until the `with` ends.

    The processes end there and nowhere else: left to the interpreter's exit, which a traceback's
    frames do, they would be sent SIGTERM, which they ignore, and be waited for without end.

    Args:
        slots: which of `entries` each micro-batch holds.
        device: where they go; for a GPU they lie in pinned memory.
        workers: None: `data.num_workers`.
        augmentation, alignment: see `load_batch`.

    Raises:
        UserError: while iterating: a file can't be read, or holds what it may not.
    """
    workers = data.num_workers if workers is None else workers
    loader = DataLoader(
        SlotDataset(source, entries, augmentation, alignment),
        batch_sampler=slots,  # type: ignore[arg-type]
        collate_fn=as_it_is,  # type: ignore[arg-type]  # not a list: `__getitems__` made the batch
        num_workers=workers,
        prefetch_factor=data.prefetch_factor if workers else None,
        pin_memory=data.pin_memory and device.type == "cuda",
        worker_init_fn=start_worker,
    )
    batches = iter(loader)
    try:
        yield good(batches)
    finally:
        end_workers(batches)


def end_workers(batches: object) -> None:
    """Also those that are stuck or stopped."""
    workers = getattr(batches, "_workers", [])  # none where this process loads
    try:
        if workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]  # what its `__del__` does, too late here
    finally:
        for worker in workers:
            worker.kill()


def good(batches: Iterable[MicroBatch | UserError]) -> Iterator[MicroBatch]:
    """Raises an error where one stands in a batch's place."""
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def start_worker(_worker: int) -> None:
    """A loader process's first act: stop signals are the training process's affair, and one thread is enough."""
    ignore_stop_signals()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
