"""Sources of samples: files in the guide's layout, or built-in materials."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from neuropbr_dist.config import DataConfig
from neuropbr_dist.data.builtin.cache import (
    VERSION,
    BuiltinCache,
    material_name,
    sample_cameras,
    sample_name,
)
from neuropbr_dist.data.cameras import NOT_KNOWN
from neuropbr_dist.data.files.cache import MapFiles
from neuropbr_dist.data.files.decode import read_views
from neuropbr_dist.data.files.entries import CURRICULA, Entry, Sample
from neuropbr_dist.errors import UserError

BUILTIN_SIZE = 2048


class Source(ABC):
    """Entries, and their pictures as uint8."""

    size: int
    """Side of every picture in pixels, after resizing."""
    entries: Sequence[Any]
    stored_sides: Sequence[int] = ()
    """Sides in pixels at which pictures are read without resizing, rising; empty: they are made at any."""
    edition = ""
    """Version of the pictures that the entries stand for, where their names don't say it."""

    @abstractmethod
    def at(self, size: int) -> Source:
        """Return the same entries with pictures of another side in pixels; they may share what is open."""

    def cameras(self, entry: Any) -> np.ndarray:
        """Return the cameras of the entry's views: float32 (3, 14), see `materials.plane.encode`."""
        return NOT_KNOWN

    @abstractmethod
    def load(self, entry: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return views (3, 3, S, S) and maps (8, S, S), uint8."""

    def maps(self, entry: Any) -> np.ndarray:
        """Return the maps alone, uint8 (8, S, S)."""
        return self.load(entry)[1]

    def load_into(
        self, entry: Any, views: Sequence[np.ndarray], maps: np.ndarray, tops: Sequence[int] = (0, 0, 0, 0)
    ) -> None:
        """Fill arrays with rows of a sample's pictures; what is stored so that rows can be read alone is.

        Args:
            views: three, (3, h, S), each of as many rows as are wanted of it.
            maps: (8, h, S).
            tops: the first row of each view's, and of the maps'.

        Raises:
            UserError: The sample can't be read, or has another side than `size`.
        """
        all_views, all_maps = self.load(entry)
        for out, picture, top in zip((*views, maps), (*all_views, all_maps), tops, strict=True):
            if picture.shape[-1] != out.shape[-1]:
                raise UserError(f"{entry.key}: {picture.shape[-1]} px, but the set's are {self.size} px")
            np.copyto(out, picture[:, top : top + out.shape[-2]])


@dataclass(frozen=True)
class BuiltinEntry:
    """A procedural sample; one material an index."""

    index: int
    renders: Literal["clean", "dirty"]
    material: str

    @property
    def name(self) -> str:
        return sample_name(self.index)

    @property
    def key(self) -> str:
        return f"{self.renders}/{self.name}"


class FileSource(Source):
    """PNG files in the guide's layout, decoded when asked for.

    Args:
        resize: pictures are resized to `size`; else they have it.
        cache_mib: memory for the maps of materials used last, which several samples may share.
        native: the files' own side; None: not known.
    """

    def __init__(
        self,
        entries: Sequence[Sample],
        size: int,
        resize: bool,
        cache_mib: int = 0,
        native: int | None = None,
    ) -> None:
        self.entries, self.size = entries, size
        self.stored_sides = () if native is None else (native,)
        self._resize, self._cache_mib = size if resize else None, cache_mib
        self._maps = MapFiles(self._resize, cache_mib)

    def at(self, size: int) -> FileSource:
        return type(self)(self.entries, size, True, self._cache_mib, *self.stored_sides)

    def cameras(self, entry: Sample) -> np.ndarray:
        return NOT_KNOWN if entry.cameras is None else entry.cameras

    def load(self, entry: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Return views and maps as `Source.load` does; the maps are read-only: they may be a cached array."""
        return read_views(entry, self._resize), self.maps(entry)

    def maps(self, entry: Sample) -> np.ndarray:
        return self._maps.read(entry.maps)


class BuiltinSource(Source):
    """Built-in procedural materials, made once into a cache."""

    edition = f" built-in {VERSION}"

    def __init__(self, data: DataConfig, seed: int) -> None:
        self.size = data.image_size or BUILTIN_SIZE
        self.cache = BuiltinCache(data.builtin_cache, seed, self.size)
        self.folders = CURRICULA[data.render_curriculum]
        self._cameras: dict[int, np.ndarray] = {}  # clean and dirty views share them
        self.entries = [
            BuiltinEntry(i, folder, material_name(seed, i))
            for i in range(data.builtin_count)
            for folder in self.folders
        ]

    def at(self, size: int) -> BuiltinSource:
        other = copy(self)
        other.size, other.cache = size, self.cache.at(size)
        return other

    def cameras(self, entry: BuiltinEntry) -> np.ndarray:
        if entry.index not in self._cameras:
            self._cameras[entry.index] = sample_cameras(self.cache.seed, entry.index).encoded(entry.renders)
        return self._cameras[entry.index]

    def load(self, entry: BuiltinEntry) -> tuple[np.ndarray, np.ndarray]:
        return self.cache.views(entry.index, entry.renders), self.maps(entry)

    def maps(self, entry: BuiltinEntry) -> np.ndarray:
        return self.cache.maps(entry.index)


def fingerprint(entries: Sequence[Entry], size: int, edition: str = "") -> str:
    """Return a hash of which samples a set holds, in which order, at which size, and which edition of them."""
    digest = hashlib.sha256(f"{size}{edition}".encode())
    for entry in entries:
        digest.update(f"\n{entry.key}\t{entry.material}".encode())
    return digest.hexdigest()[:16]
