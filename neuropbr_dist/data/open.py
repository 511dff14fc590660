"""The one door to the data: which samples a configuration means, checked once and the same on every rank."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from neuropbr_dist.config import DataConfig, TrainConfig
from neuropbr_dist.data.alignment import known
from neuropbr_dist.data.cameras import CAMERAS_FILE
from neuropbr_dist.data.files.entries import Sample
from neuropbr_dist.data.files.headers import HeaderReport, check_headers
from neuropbr_dist.data.files.layout import list_faults, scan, subfolders
from neuropbr_dist.data.packed.index import HEAD, INDEX_FILES
from neuropbr_dist.data.packed.source import PackedSource
from neuropbr_dist.data.sources import BuiltinSource, Entry, FileSource, Source, fingerprint
from neuropbr_dist.data.split import Subset, read_split, split, split_as_named
from neuropbr_dist.errors import UserError
from neuropbr_dist.ranks import all_gather_object, on_each_rank, on_rank_0, rank, world_size

Align = Literal["plane", "none"]

HERE = Path("data/input"), Path("data/output")
"""Where files are looked for if none are named."""


@dataclass(frozen=True)
class Samples:
    """A set cut into train and validation."""

    source: Source
    train: Sequence[Entry]
    val: Sequence[Entry]
    data: DataConfig
    """The configuration's part, resolved: saved with the run, it means the same set ever after."""
    align: Align
    """`model.align`, resolved."""
    cameras: tuple[int, int]
    """How many entries have a view whose camera counts, and how many there are."""

    @property
    def fingerprint(self) -> str:
        """Hash of which samples the training set holds, in which order, at which size."""
        return fingerprint(self.train, self.source.size, self.source.edition)


def resolve_data(data: DataConfig) -> DataConfig:
    """Return `data` with what it leaves open filled in: files at ./data if they are there, else built-in materials.

    The set is then `packed_dir`, or `input_dir` and `output_dir`, or, if none is named, built in. `data.builtin` keeps
    a run that began on built-in materials from a ./data that came later.
    """
    if data.packed_dir is not None or _names_files(data) or data.builtin:
        return data
    if all(folder.is_dir() for folder in HERE):
        return replace(data, input_dir=str(HERE[0]), output_dir=str(HERE[1]))
    return replace(data, builtin=True)


def open_source(data: DataConfig, seed: int) -> Source:
    """Open the set that `data`, resolved, means, for a process of its own: no file is read before it is asked for.

    Args:
        seed: key of built-in materials.

    Raises:
        UserError: no such set, or files of it are missing.
    """
    if data.packed_dir is not None:
        return PackedSource(data.packed_dir, data.render_curriculum, data.image_size)
    if _names_files(data):
        return _files(data, _scan(data), data.image_size or 0)
    return BuiltinSource(data, seed)


def open_samples(cfg: TrainConfig) -> Samples:
    """Open and check the set that `cfg.data` means, and split it; built-in ones are yet to be made. Collective.

    Where views are rectified, entries without a view whose camera counts are left out before.

    Raises:
        UserError: on all ranks: anything wrong with the files, all faults in one message.
    """
    data = on_rank_0(lambda: resolve_data(cfg.data))
    if data.packed_dir is None and _names_files(data):
        source: Source = _checked_files(data, Path(cfg.training.checkpoint_dir))
    else:
        source = on_each_rank(lambda: open_source(data, cfg.training.seed))
    if isinstance(source, PackedSource):
        on_rank_0(source.check_shards)
    kept = with_cameras(source, data)
    align = resolve_align(cfg.model.align, kept, source.entries)
    entries = source.entries if align == "none" else kept
    if not entries:
        raise UserError(
            f"model.align = plane needs cameras, but none of {len(source.entries)} samples has a view with one of "
            f"data.min_confidence = {data.min_confidence} or more ({CAMERAS_FILE}, docs/data.md); model.align = none "
            "takes views as they are"
        )
    validation = on_rank_0(lambda: _own_split(data, source))
    train, val = _cut(entries, data, cfg.training.seed, validation)
    return Samples(source, train, val, data, align, (len(kept), len(source.entries)))


def with_cameras(source: Source, data: DataConfig) -> Sequence[Entry]:
    """Return the entries of which a view has a camera that counts, in their order."""
    known_views = (known(source.cameras(entry), data.min_confidence).any() for entry in source.entries)
    places = np.flatnonzero(np.fromiter(known_views, bool, len(source.entries)))
    return source.entries if len(places) == len(source.entries) else Subset(source.entries, places)


def resolve_align(wanted: str, kept: Sequence[Entry], entries: Sequence[Entry]) -> Align:
    """Return `model.align`: `auto` is `plane` if nine entries of ten, or more, keep a view."""
    if wanted == "auto":
        return "plane" if 10 * len(kept) >= 9 * len(entries) else "none"
    return "plane" if wanted == "plane" else "none"


def split_entries(
    source: Source, data: DataConfig, align: str, seed: int
) -> tuple[Subset[Entry], Subset[Entry]]:
    """Return (train, validation) as a run with these settings cuts a set; for a process of its own."""
    entries = with_cameras(source, data) if align == "plane" else source.entries
    return _cut(entries, data, seed, _own_split(data, source))


def _cut(
    entries: Sequence[Entry], data: DataConfig, seed: int, validation: frozenset[str] | None
) -> tuple[Subset[Entry], Subset[Entry]]:
    """Cut by the set's own split if it has one, else by `data.val_ratio`."""
    if validation is not None:
        return split_as_named(entries, validation)
    return split(entries, data.val_ratio, data.split_by, seed)


def _own_split(data: DataConfig, source: Source) -> frozenset[str] | None:
    """Return the materials that the set's own split holds out; None where `data.val_ratio` decides."""
    if isinstance(source, PackedSource):
        return read_split(source.folder, source.set.materials)
    if data.output_dir is None or not _names_files(data):
        return None
    return read_split(Path(data.output_dir), subfolders(Path(data.output_dir)))


def fill_cache(source: Source, ranks_per_node: int = 1) -> None:
    """Make this rank's share of the built-in samples that a run reads, on its share of the cores. Collective.

    Nothing is to be made of other sources.

    Raises:
        UserError: on all ranks: one can't keep them.
    """
    if not isinstance(source, BuiltinSource):
        return
    indices = sorted({entry.index for entry in source.entries})[rank() :: world_size()]
    missing = source.cache.missing(indices, source.folders)
    workers = max(1, min(len(missing), (os.cpu_count() or 1) // ranks_per_node))
    hidden = not missing or rank() != 0 or not sys.stderr.isatty()
    with tqdm(total=len(missing), desc="Making built-in materials", disable=hidden) as bar:
        on_each_rank(lambda: source.cache.fill(missing, bar.update, source.folders, workers))


def first_files(data: DataConfig) -> list[Path]:
    """Return the files of a set's first sample, or of a packed set's index; none of built-in materials.

    Nodes that see the same of these see the same set.

    Raises:
        UserError: no such set, or files of it are missing.
    """
    data = resolve_data(data)
    if data.packed_dir is not None:
        return [Path(data.packed_dir) / name for name in (HEAD, *INDEX_FILES)]
    if not _names_files(data):
        return []
    first = _scan(data)[0]
    return [*first.views, *first.maps]


# -- files in the guide's layout -------------------------------------------------------------


def _names_files(data: DataConfig) -> bool:
    return data.input_dir is not None and data.output_dir is not None


def _scan(data: DataConfig) -> list[Sample]:
    assert data.input_dir is not None and data.output_dir is not None
    return scan(data.input_dir, data.output_dir, data.metadata_path, data.render_curriculum)


def _files(data: DataConfig, entries: list[Sample], size: int) -> FileSource:
    return FileSource(entries, size, resize=data.image_size is not None, cache_mib=data.cache_mib)


def _checked_files(data: DataConfig, run_folder: Path) -> FileSource:
    """Return the files, after every rank has looked at its share of their headers.

    Args:
        run_folder: where each rank keeps the headers that it has seen.
    """
    # One rank lists the folders: a thousand at once are a burden on a shared file system.
    entries = on_rank_0(lambda: _scan(data))

    def look() -> HeaderReport:
        run_folder.mkdir(parents=True, exist_ok=True)
        seen = run_folder / f"headers-{rank()}.json"
        return check_headers(entries, data.image_size, rank=rank(), world_size=world_size(), cache=seen)

    report = on_each_rank(look)
    faults = _by_host(all_gather_object((socket.gethostname(), report.faults)))
    if faults:
        raise UserError(
            f"{data.input_dir}: the data set has faults, nothing was trained: {list_faults(faults)}"
        )
    size = data.image_size or report.native_size
    assert size is not None  # an unreadable first view is a fault
    return _files(data, entries, size)


def _by_host(found: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Return all ranks' faults, sorted; of several hosts each is named: one may see what others don't."""
    several = len({host for host, _ in found}) > 1
    return sorted(
        {f"{fault} (on {host})" if several else fault for host, faults in found for fault in faults}
    )
