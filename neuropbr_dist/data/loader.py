"""Micro-batches of uint8 samples, in the order of the global cursor."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.order import SampleOrder, Slot, plan_step, rank_share
from neuropbr_dist.data.sources import Entry, Source
from neuropbr_dist.errors import UserError

Loaded = tuple[np.ndarray, np.ndarray, float, str]


class SlotDataset(Dataset):
    """Slot -> one sample of `entries`, or the `UserError` that names what is wrong with its files.

    Returned, not raised: a worker's exception would reach the user inside a traceback.
    """

    def __init__(self, source: Source, entries: Sequence[Entry]) -> None:
        self.source, self.entries = source, entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, slot: Slot) -> Loaded | UserError:
        entry = self.entries[slot.index]
        try:
            views, maps = self.source.load(entry)
        except UserError as error:
            return error
        return views, maps, slot.weight, entry.key


def collate(samples: Sequence[Loaded | UserError]) -> MicroBatch | UserError:
    """A micro-batch, or the first sample's error."""
    good = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    views, maps, weights, keys = zip(*good, strict=True)
    return MicroBatch(
        torch.from_numpy(np.stack(views)),
        torch.from_numpy(np.stack(maps)),
        torch.tensor(weights, dtype=torch.float32),
        list(keys),
    )


class TrainingSlots:
    """This rank's micro-batches from a cursor to the end of the run, as lists of slots."""

    def __init__(self, order: SampleOrder, cursor: int, world: int, rank: int, batch_size: int) -> None:
        self.order, self.cursor = order, cursor
        self.world, self.rank, self.batch_size = world, rank, batch_size

    def __iter__(self) -> Iterator[list[Slot]]:
        for cursor in range(self.cursor, self.order.total_samples, self.order.global_batch):
            yield from plan_step(self.order, cursor, self.world, self.rank, self.batch_size)


def validation_slots(n: int, world: int, rank: int, batch_size: int) -> list[list[Slot]]:
    """This rank's share of `n` samples, each once over all ranks; every rank gets equally many
    micro-batches of one size, filled up with weight 0, so that collectives and shapes match."""
    start, length = rank_share(n, world, rank)
    largest = math.ceil(n / world)
    size = min(batch_size, largest)
    slots = [Slot(0, i, 1.0) for i in range(start, start + length)]
    slots += [Slot(0, min(start, n - 1), 0.0)] * (math.ceil(largest / size) * size - length)
    return [slots[i : i + size] for i in range(0, len(slots), size)]


def make_loader(
    source: Source,
    entries: Sequence[Entry],
    slots: TrainingSlots | list[list[Slot]],
    *,
    workers: int,
    prefetch: int,
    pin: bool,
    worker_start: Callable[[], None],
) -> Iterator[MicroBatch]:
    """Batches in the order of `slots`.

    Args:
        worker_start: called in each worker process first (stop signals are the
            training process's affair, not theirs).

    Raises:
        UserError: while iterating: a file can't be read, or holds what it may not.
    """
    loader = DataLoader(
        SlotDataset(source, entries),
        batch_sampler=slots,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin,
        worker_init_fn=partial(start_worker, worker_start),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def start_worker(worker_start: Callable[[], None], _worker: int) -> None:
    worker_start()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
