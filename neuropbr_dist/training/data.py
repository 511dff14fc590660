"""The run's samples: scanned and checked once, split, the same on every rank."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from neuropbr_dist.cluster import Environment, ignore_stop_signals
from neuropbr_dist.config import DataConfig, ModelConfig, TrainConfig, check_size
from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.files.headers import check_headers
from neuropbr_dist.data.files.layout import Sample, list_faults, scan
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
from neuropbr_dist.models import size_multiple, smallest_side
from neuropbr_dist.ranks import all_gather_object, broadcast_object, is_rank_0

log = logging.getLogger(__name__)


@dataclass
class Samples:
    """A set cut into train and validation."""

    source: Source
    train: Sequence[Entry]
    val: Sequence[Entry]

    @property
    def fingerprint(self) -> str:
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


def open_samples(
    cfg: TrainConfig,
    env: Environment,
    fits: Callable[[int], None] = lambda _size: None,
) -> Samples:
    """The files that `cfg.data` names, or built-in materials. Collective.

    Args:
        fits: raises if the machine can't train on pictures of this side.

    Raises:
        UserError: on all ranks: anything wrong with the files, all faults in one message.
    """
    source = open_source(cfg, env)
    check_size(source.size, size_multiple(cfg.model))
    check_discriminator(cfg.model, source.size)
    fits(source.size)
    if isinstance(source, BuiltinSource):
        fill_cache(source, env)
    data = cfg.data
    train, val = split(source.entries, data.val_ratio, data.split_by, cfg.training.seed)
    log.info(f"Samples: {len(train)} for training, {len(val)} for validation, {source.size} px")
    return Samples(source, train, val)


def check_discriminator(model: ModelConfig, size: int) -> None:
    """Raises UserError where the discriminator has no patch to judge in pictures of `size` px."""
    needed = smallest_side(model.discriminator_n_layers)
    if model.use_gan and size < needed:
        raise UserError(
            f"model.discriminator_n_layers = {model.discriminator_n_layers} needs pictures of {needed} px or more, "
            f"but they are {size} px; lower it ({smallest_side(3)} px are enough for 3) or raise data.image_size"
        )


def open_source(cfg: TrainConfig, env: Environment) -> Source:
    """The source that `cfg.data` means; what it left open is filled in, to be saved with the run. Collective."""
    if cfg.data.packed_dir is not None:
        return open_packed(cfg)
    folders = broadcast_object(default_folders(cfg.data))
    if folders is None:
        source = BuiltinSource(cfg.data, cfg.training.seed)
        why = "data.builtin" if cfg.data.builtin else "No data named and none at ./data"
        cfg.data.builtin = True
        log.info(
            f"{why}: training on {cfg.data.builtin_count} built-in procedural "
            f"materials at {source.size} px (--input-dir and --output-dir take your own)"
        )
        return source
    cfg.data.input_dir, cfg.data.output_dir = map(str, folders)
    entries = scan_on_rank_0(cfg, folders)
    cache = Path(cfg.training.checkpoint_dir) / f"headers-{env.rank}.json"
    cache.parent.mkdir(parents=True, exist_ok=True)
    report = check_headers(
        entries, cfg.data.image_size, rank=env.rank, world_size=env.world_size, cache=cache
    )
    faults = by_host(all_gather_object((socket.gethostname(), report.faults)))
    if faults:
        raise UserError(f"{folders[0]}: the data set has faults, nothing was trained: {list_faults(faults)}")
    size = cfg.data.image_size or report.native_size
    assert size is not None
    return FileSource(entries, size, resize=cfg.data.image_size is not None, cache_mib=cfg.data.cache_mib)


def by_host(found: Sequence[tuple[str, list[str]]]) -> list[str]:
    """All ranks' faults, sorted; of several hosts each is named: one may see what others don't."""
    several = len({host for host, _ in found}) > 1
    return sorted(
        {f"{fault} (on {host})" if several else fault for host, faults in found for fault in faults}
    )


def open_packed(cfg: TrainConfig) -> PackedSource:
    """The packed set that the configuration names; rank 0 looks for every shard. Collective."""
    data, failure = cfg.data, None
    assert data.packed_dir is not None
    source = PackedSource(data.packed_dir, data.render_curriculum, data.image_size)
    if is_rank_0():
        try:
            source.check_shards()
        except UserError as error:
            failure = error
    failure = broadcast_object(failure)
    if failure is not None:
        raise failure
    return source


def scan_on_rank_0(cfg: TrainConfig, folders: tuple[Path, Path]) -> list[Sample]:
    """One rank lists the folders: a thousand listing them at once is a burden on a shared file system."""
    found: list[Sample] | UserError | None = None
    if is_rank_0():
        try:
            found = scan(*folders, cfg.data.metadata_path, cfg.data.render_curriculum)
        except UserError as error:
            found = error
    found = broadcast_object(found)
    if isinstance(found, UserError):
        raise found
    assert found is not None
    return found


def fill_cache(source: BuiltinSource, env: Environment) -> None:
    """Make this rank's share of the built-in samples that the run reads, on its share of the cores."""
    indices = sorted({entry.index for entry in source.entries})[env.rank :: env.world_size]
    missing = source.cache.missing(indices, source.folders)
    if missing:
        workers = max(1, min(len(missing), (os.cpu_count() or 1) // env.local_world_size))
        hidden = env.rank != 0 or not sys.stderr.isatty()
        with tqdm(total=len(missing), desc="Making built-in materials", disable=hidden) as bar:
            source.cache.fill(missing, bar.update, source.folders, workers)
    all_gather_object(None)  # a barrier on the host
