"""The run's samples: scanned and checked once, split, the same on every rank."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from neuropbr_dist.cluster import Environment, ignore_stop_signals
from neuropbr_dist.config import DataConfig, TrainConfig
from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.files.headers import check_headers
from neuropbr_dist.data.files.layout import list_faults, scan
from neuropbr_dist.data.loader import TrainingSlots, make_loader
from neuropbr_dist.data.order import Slot
from neuropbr_dist.data.packed.source import PackedSource
from neuropbr_dist.data.sources import (
    BuiltinSource,
    Entry,
    FileSource,
    Source,
    default_folders,
    fingerprint,
)
from neuropbr_dist.data.split import split
from neuropbr_dist.errors import UserError
from neuropbr_dist.ranks import all_gather_object, barrier, on_rank_0


@dataclass(frozen=True)
class Samples:
    """A set cut into train and validation."""

    source: Source
    train: Sequence[Entry]
    val: Sequence[Entry]
    data: DataConfig
    """The configuration's part, with what it left open filled in by what was found."""

    @property
    def fingerprint(self) -> str:
        """Hash of which samples the training set holds, in which order, at which size."""
        return fingerprint(self.train, self.source.size)


def batches_of(
    data: DataConfig,
    source: Source,
    entries: Sequence[Entry],
    slots: TrainingSlots | list[list[Slot]],
    device: torch.device,
    workers: int | None = None,
    augmentation: Augmentation | None = None,
) -> AbstractContextManager[Iterator[MicroBatch]]:
    """This rank's micro-batches, read ahead by worker processes that end with the `with`.

    Args:
        slots: which of `entries` each micro-batch holds.
        device: where they go; for a GPU they lie in pinned memory.
        workers: None: `data.num_workers`.
    """
    return make_loader(
        source, entries, slots, workers=data.num_workers if workers is None else workers,
        prefetch=data.prefetch_factor, pin=data.pin_memory and device.type == "cuda",
        worker_start=ignore_stop_signals, augmentation=augmentation,
    )  # fmt: skip


def open_samples(cfg: TrainConfig, env: Environment) -> Samples:
    """Return the samples that `cfg.data` means; built-in ones have yet to be made (`fill_cache`). Collective.

    Raises:
        UserError: on all ranks: anything wrong with the files, all faults in one message.
    """
    source, data = open_source(cfg, env)
    train, val = split(source.entries, data.val_ratio, data.split_by, cfg.training.seed)
    return Samples(source, train, val, data)


def open_source(cfg: TrainConfig, env: Environment) -> tuple[Source, DataConfig]:
    """Return the source that `cfg.data` means, and `cfg.data` with what it left open filled in. Collective."""
    if cfg.data.packed_dir is not None:
        return open_packed(cfg.data), cfg.data
    folders = on_rank_0(lambda: default_folders(cfg.data))
    if folders is None:
        return BuiltinSource(cfg.data, cfg.training.seed), replace(cfg.data, builtin=True)
    inputs, maps = folders
    # One rank lists the folders: a thousand at once are a burden on a shared file system.
    entries = on_rank_0(lambda: scan(inputs, maps, cfg.data.metadata_path, cfg.data.render_curriculum))
    cache = Path(cfg.training.checkpoint_dir) / f"headers-{env.rank}.json"
    cache.parent.mkdir(parents=True, exist_ok=True)
    report = check_headers(
        entries, cfg.data.image_size, rank=env.rank, world_size=env.world_size, cache=cache
    )
    faults = by_host(all_gather_object((socket.gethostname(), report.faults)))
    if faults:
        raise UserError(f"{inputs}: the data set has faults, nothing was trained: {list_faults(faults)}")
    size = cfg.data.image_size or report.native_size
    assert size is not None
    source = FileSource(entries, size, resize=cfg.data.image_size is not None, cache_mib=cfg.data.cache_mib)
    return source, replace(cfg.data, input_dir=str(inputs), output_dir=str(maps))


def by_host(found: Sequence[tuple[str, list[str]]]) -> list[str]:
    """All ranks' faults, sorted; of several hosts each is named: one may see what others don't."""
    several = len({host for host, _ in found}) > 1
    return sorted(
        {f"{fault} (on {host})" if several else fault for host, faults in found for fault in faults}
    )


def open_packed(data: DataConfig) -> PackedSource:
    """Return the packed set that the configuration names; rank 0 looks for every shard. Collective."""
    assert data.packed_dir is not None
    source = PackedSource(data.packed_dir, data.render_curriculum, data.image_size)
    on_rank_0(source.check_shards)
    return source


def fill_cache(source: Source, env: Environment) -> None:
    """Make this rank's share of the built-in samples that the run reads, on its share of the cores. Collective."""
    if not isinstance(source, BuiltinSource):
        return
    indices = sorted({entry.index for entry in source.entries})[env.rank :: env.world_size]
    missing = source.cache.missing(indices, source.folders)
    if missing:
        workers = max(1, min(len(missing), (os.cpu_count() or 1) // env.local_world_size))
        hidden = env.rank != 0 or not sys.stderr.isatty()
        with tqdm(total=len(missing), desc="Making built-in materials", disable=hidden) as bar:
            source.cache.fill(missing, bar.update, source.folders, workers)
    barrier()
