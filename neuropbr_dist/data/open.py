"""The one door to the data: which samples a configuration means, checked once and the same on every rank."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from neuropbr_dist.config import DataConfig, TrainConfig, check_rendering
from neuropbr_dist.data.alignment import known
from neuropbr_dist.data.builtin.cache import BuiltinCache, fill
from neuropbr_dist.data.cameras import CAMERAS_FILE
from neuropbr_dist.data.files.check import checked_side
from neuropbr_dist.data.files.entries import CURRICULA, Sample
from neuropbr_dist.data.files.headers import roles_of
from neuropbr_dist.data.files.layout import index_materials, scan, subfolders
from neuropbr_dist.data.packed.index import INDEX_FILES, METADATA
from neuropbr_dist.data.packed.source import PackedSource
from neuropbr_dist.data.rendered.materials import (
    BuiltinMaterials,
    Materials,
    checked_materials,
    holds_materials_alone,
    materials_folder,
    open_materials,
    packed_folder,
)
from neuropbr_dist.data.rendered.renderer import Renderer
from neuropbr_dist.data.rendered.source import (
    LEAST_OF_AN_EPOCH,
    RenderedEntries,
    RenderedSource,
    cut_rendered,
)
from neuropbr_dist.data.sources import BuiltinSource, Entry, FileSource, Source, fingerprint
from neuropbr_dist.data.split import Subset, read_split, split, split_as_named
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.environment import read_environments
from neuropbr_dist.ranks import on_each_rank, on_rank_0, rank, world_size

Align = Literal["plane", "none"]

HERE = Path("data/input"), Path("data/output")
"""Folders where files are looked for if none are named."""


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
    """Number of entries that have a view whose camera counts, and of all entries."""

    def at(self, size: int) -> Samples:
        """Return the same samples with pictures of another side in pixels."""
        if size == self.source.size:
            return self
        return replace(self, source=self.source.at(size), data=replace(self.data, image_size=size))

    def renderer(self, device: torch.device) -> Renderer:
        """Return what renders views of this set on a device; it knows the set's panoramas."""
        environments = self.source.environments if isinstance(self.source, RenderedSource) else None
        return Renderer(None if environments is None else environments.to(device))

    @property
    def described(self) -> str:
        """Origin of views and maps, in full, so that nobody takes built-in materials for others."""
        return described(self.source, self.data)

    @property
    def fingerprint(self) -> str:
        """Hash of which samples the training set holds, in which order, at which size."""
        return fingerprint(self.train, self.source.size, self.source.edition)


def resolve_data(data: DataConfig) -> DataConfig:
    """Return `data` with what it leaves open filled in: files at ./data if they are there, else built-in materials.

    The set is then `materials_dir`, `packed_dir`, or `input_dir` and `output_dir`, or, if none is named, built in.
    `data.builtin` keeps a run that began on built-in materials from a ./data that came later.

    Raises:
        UserError: `data` asks of stored views what only rendered ones can have, or the other way round.
    """
    if not (data.materials_dir or data.packed_dir or _names_files(data) or data.builtin):
        if all(folder.is_dir() for folder in HERE):
            data = replace(data, input_dir=str(HERE[0]), output_dir=str(HERE[1]))
        else:
            data = replace(data, builtin=True)
    if data.render == "auto":
        without_views = data.materials_dir or (data.packed_dir and holds_materials_alone(data.packed_dir))
        data = replace(data, render="online" if without_views else "stored")
    check_rendering(data)
    return data


def open_source(data: DataConfig, seed: int) -> Source:
    """Open the set that `data`, resolved, means, for a process of its own: no file is read before it is asked for.

    Args:
        seed: key of built-in materials.

    Raises:
        UserError: no such set, or files of it are missing.
    """
    if data.render == "online":
        return _rendered(open_materials(data, seed), data, seed)
    if data.packed_dir is not None:
        return PackedSource(data.packed_dir, data.render_curriculum, data.image_size)
    if _names_files(data):
        return _files(data, _scan(data), data.image_size or 0)
    return BuiltinSource(data, seed)


def described(source: Source, data: DataConfig) -> str:
    """Return where the views and maps of a set come from, for a person.

    Args:
        data: that means the set, resolved.
    """
    renders = " and ".join(CURRICULA[data.render_curriculum])
    if isinstance(source, RenderedSource):
        where = packed_folder(data) or materials_folder(data)
        kind = "built-in materials" if where is None else f"materials of {where}"
        light = "" if data.environments_dir is None else f", lit by {data.environments_dir}"
        return f"rendered online from {len(source.materials.names)} {kind} × {source.repeats} repeats, {renders}{light}"
    if isinstance(source, BuiltinSource):
        return f"stored {renders} views of {data.builtin_count} built-in materials"
    return f"stored {renders} views of {data.packed_dir or f'{data.input_dir}, maps of {data.output_dir}'}"


def open_samples(cfg: TrainConfig) -> Samples:
    """Open and check the set that `cfg.data` means, and split it; built-in ones are yet to be made. Collective.

    Where views are rectified, entries without a view whose camera counts are left out before.

    Raises:
        UserError: on all ranks: anything wrong with the files, all faults in one message.
    """
    data = on_rank_0(lambda: resolve_data(cfg.data))
    if data.render == "online":
        return _open_rendered(cfg, data)
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
) -> tuple[Sequence[Entry], Sequence[Entry]]:
    """Return (train, validation) as a run with these settings cuts a set; for a process of its own."""
    if isinstance(source, RenderedSource):
        return cut_rendered(source, _held_out(source.materials, data, seed))
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
    if not isinstance(source, FileSource) or data.output_dir is None:
        return None
    return read_split(Path(data.output_dir), subfolders(Path(data.output_dir)))


def builtin_cache(source: Source) -> BuiltinCache | None:
    """Return where a set's built-in materials are kept; None for other materials."""
    if isinstance(source, RenderedSource):
        return source.materials.cache if isinstance(source.materials, BuiltinMaterials) else None
    return source.cache if isinstance(source, BuiltinSource) else None


def fill_cache(sources: Sequence[Source], ranks_per_node: int = 1) -> None:
    """Make this rank's share of the built-in samples that a run reads, on its share of the cores. Collective.

    Nothing is to be made of other sources.

    Args:
        sources: the same samples at the sides of a run's stages.

    Raises:
        UserError: on all ranks: one can't keep them.
    """
    caches = [cache for source in sources if (cache := builtin_cache(source)) is not None]
    if not caches:
        return
    first = sources[0]
    if isinstance(first, BuiltinSource):
        folders, every = first.folders, sorted({entry.index for entry in first.entries})
    else:
        folders, every = (), sorted({entry.number for entry in first.entries})
    mine = every[rank() :: world_size()]
    missing = sorted({index for cache in caches for index in cache.missing(mine, folders)})
    workers = max(1, min(len(missing), (os.cpu_count() or 1) // ranks_per_node))
    hidden = not missing or rank() != 0 or not sys.stderr.isatty()
    with tqdm(total=len(missing), desc="Making built-in materials", disable=hidden) as bar:
        on_each_rank(lambda: fill(caches, missing, bar.update, folders, workers))


def first_files(data: DataConfig) -> list[Path]:
    """Return the files of a set's first sample or material, or of a packed set's index; none of built-in materials.

    Nodes that see the same of these see the same set.

    Raises:
        UserError: no such set, or files of it are missing.
    """
    data = resolve_data(data)
    packed = packed_folder(data)
    if packed is not None:
        return [packed / name for name in (METADATA, *INDEX_FILES)]
    if data.render == "online" and (folder := materials_folder(data)) is not None:
        return list(next(iter(index_materials(folder).materials.values()), ()))
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


def _files(data: DataConfig, entries: list[Sample], size: int, native: int | None = None) -> FileSource:
    return FileSource(entries, size, data.image_size is not None, data.cache_mib, native)


def _checked_files(data: DataConfig, run_folder: Path) -> FileSource:
    """Return the files, after every rank has looked at its share of their headers."""
    # One rank lists the folders: a thousand at once are a burden on a shared file system.
    entries = on_rank_0(lambda: _scan(data))
    assert data.input_dir is not None
    return _files(
        data, entries, *checked_side(data.input_dir, roles_of(entries), data.image_size, run_folder)
    )


# -- maps alone, whose views are rendered ----------------------------------------------------


def _open_rendered(cfg: TrainConfig, data: DataConfig) -> Samples:
    seed = cfg.training.seed
    materials = checked_materials(data, seed, Path(cfg.training.checkpoint_dir))
    source = on_each_rank(lambda: _rendered(materials, data, seed))
    train, val = cut_rendered(source, on_rank_0(lambda: _held_out(materials, data, seed)))
    data, count = replace(data, renders_per_epoch=source.repeats), len(source.entries)
    align: Align = "none" if cfg.model.align == "none" else "plane"
    return Samples(source, train, val, data, align, (count, count))


def _rendered(materials: Materials, data: DataConfig, seed: int) -> RenderedSource:
    """Return the entries that an epoch shows; `renders_per_epoch`, if it is open, makes them `LEAST_OF_AN_EPOCH`."""
    folders = len(CURRICULA[data.render_curriculum])
    repeats = data.renders_per_epoch
    if repeats is None:
        trained_on = len(materials.names) - len(_held_out(materials, data, seed))
        repeats = -(-LEAST_OF_AN_EPOCH // (trained_on * folders))
    panoramas = None if data.environments_dir is None else read_environments(data.environments_dir)
    return RenderedSource(materials, repeats, data.render_curriculum, seed, panoramas, data.bench_scenes)


def _held_out(materials: Materials, data: DataConfig, seed: int) -> frozenset[str]:
    """Return the names of the materials that validation is done with."""
    once, folder = RenderedEntries(materials.names, 1, 0), getattr(materials, "folder", None)
    own = None if folder is None else read_split(folder, materials.names)
    return frozenset(entry.material for entry in _cut(once, data, seed, own)[1])
