"""Sources of the maps of materials whose views are rendered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuropbr_dist.config import DataConfig
from neuropbr_dist.data.builtin.cache import BuiltinCache, material_name
from neuropbr_dist.data.files.cache import MapFiles
from neuropbr_dist.data.files.check import checked_side
from neuropbr_dist.data.files.layout import index_materials, list_faults
from neuropbr_dist.data.packed.index import JOURNAL, METADATA, read_metadata
from neuropbr_dist.data.packed.source import PackedSet
from neuropbr_dist.data.sources import BUILTIN_SIZE
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.channels import MAP_NAMES
from neuropbr_dist.ranks import on_each_rank, on_rank_0


class Materials(ABC):
    """Named materials, and their maps as uint8 of one side."""

    names: Sequence[str]
    size: int
    """Side of the maps in pixels, after resizing."""
    stored_sides: Sequence[int] = ()
    """Sides in pixels at which maps are read without resizing, rising; empty: they are made at any."""

    @abstractmethod
    def at(self, size: int) -> Materials:
        """Return the same materials with maps of another side in pixels."""

    @abstractmethod
    def maps_into(self, index: int, out: np.ndarray) -> None:
        """Fill `out`, uint8 (8, S, S), with the maps of `names[index]`.

        Raises:
            UserError: they can't be read, or are of another side than `size`.
        """


class MaterialFiles(Materials):
    """Four PNG files a material, decoded when asked for.

    Args:
        folder: of the materials, for messages and a split of its own.
        files: name to the four maps, in the order of `MAP_NAMES`.
        resize: maps are resized to `size`; else they have it.
        cache_mib: memory for those used last.
        native: the files' own side; None: not known.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[str, Sequence[Path]],
        size: int,
        resize: bool,
        cache_mib: int,
        native: int | None = None,
    ) -> None:
        self.folder, self.names, self.size = folder, list(files), size
        self.stored_sides = () if native is None else (native,)
        self._named, self._files, self._cache_mib = files, list(files.values()), cache_mib
        self._maps = MapFiles(size if resize else None, cache_mib)

    def at(self, size: int) -> MaterialFiles:
        return MaterialFiles(self.folder, self._named, size, True, self._cache_mib, *self.stored_sides)

    def maps_into(self, index: int, out: np.ndarray) -> None:
        maps = self._maps.read(self._files[index])
        if maps.shape != out.shape:
            raise UserError(
                f"{self.folder / self.names[index]}: {maps.shape[-1]} px, but the set's are {self.size} px"
            )
        np.copyto(out, maps)


class PackedMaterials(Materials):
    """All materials of a packed set, whether it has views of them or not."""

    def __init__(self, folder: Path | str, size: int | None) -> None:
        self.set = PackedSet(folder, size)
        self.folder, self.size, self.names = self.set.folder, self.set.size, self.set.materials
        self.stored_sides = self.set.stored_sides

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedMaterials, (self.folder, self.size)

    def at(self, size: int) -> PackedMaterials:
        return PackedMaterials(self.folder, size)

    def maps_into(self, index: int, out: np.ndarray) -> None:
        self.set.maps(index, out)


class BuiltinMaterials(Materials):
    """Procedural materials, made once into a cache.

    Args:
        count: how many.
    """

    def __init__(self, cache: BuiltinCache, count: int) -> None:
        self.cache, self.size = cache, cache.size
        self.names = [material_name(cache.seed, index) for index in range(count)]

    def at(self, size: int) -> BuiltinMaterials:
        return BuiltinMaterials(self.cache.at(size), len(self.names))

    def maps_into(self, index: int, out: np.ndarray) -> None:
        np.copyto(out, self.cache.maps(index))


def packed_folder(data: DataConfig) -> Path | None:
    """Return the packed set that `data`, resolved, means, if it means one."""
    if data.packed_dir is not None:
        return Path(data.packed_dir)
    folder = None if data.materials_dir is None else Path(data.materials_dir)
    return (
        folder
        if folder is not None and ((folder / METADATA).exists() or (folder / JOURNAL).exists())
        else None
    )


def materials_folder(data: DataConfig) -> Path | None:
    """Return the folder of materials as files that `data`, resolved, means; None for built-in ones."""
    folder = data.materials_dir or data.output_dir
    return None if folder is None else Path(folder)


def holds_materials_alone(folder: str) -> bool:
    """Return whether a packed set has no views."""
    return (Path(folder) / METADATA).exists() and read_metadata(Path(folder))["samples"] == 0


def open_materials(data: DataConfig, seed: int) -> Materials:
    """Open the materials that `data`, resolved, means, for a process of its own.

    Args:
        seed: key of built-in materials.

    Raises:
        UserError: no such set, or files of it are missing.
    """
    packed, folder = packed_folder(data), materials_folder(data)
    if packed is not None:
        return PackedMaterials(packed, data.image_size)
    if folder is None:
        cache = BuiltinCache(data.builtin_cache, seed, data.image_size or BUILTIN_SIZE)
        return BuiltinMaterials(cache, data.builtin_count)
    index = index_materials(folder)
    if index.faults:
        raise UserError(list_faults(fault.message for fault in index.faults))
    return _files(data, folder, index.materials, data.image_size or 0)


def checked_materials(data: DataConfig, seed: int, run_folder: Path) -> Materials:
    """Open the materials that `data` means, after all ranks have looked at all of them. Collective.

    Args:
        run_folder: where each rank keeps the headers that it has seen.

    Raises:
        UserError: on all ranks: anything wrong with the files, all faults in one message.
    """
    folder = materials_folder(data)
    if packed_folder(data) is not None or folder is None:
        materials = on_each_rank(lambda: open_materials(data, seed))
        if isinstance(materials, PackedMaterials):
            on_rank_0(materials.set.index.check_shards)
        return materials
    found, faults = on_rank_0(lambda: _listed(folder))
    roles = {path: role for paths in found.values() for path, role in zip(paths, MAP_NAMES, strict=True)}
    size, native = checked_side(folder, roles, data.image_size, run_folder, faults)
    return _files(data, folder, found, size, native)


def _listed(folder: Path) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
    index = index_materials(folder)
    return index.materials, [fault.message for fault in index.faults]


def _files(
    data: DataConfig, folder: Path, files: Mapping[str, Sequence[Path]], size: int, native: int | None = None
) -> MaterialFiles:
    return MaterialFiles(folder, files, size, data.image_size is not None, data.cache_mib, native)
