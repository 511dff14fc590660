"""Built-in materials on disk: made once, then memory-mapped."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from neuropbr_dist.data.cameras import SampleCameras
from neuropbr_dist.data.files.entries import CURRICULA, Renders
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import NOT_AN_ARRAY, write_bytes
from neuropbr_dist.materials.cameras import builtin_cameras
from neuropbr_dist.materials.families import family_name, material_maps
from neuropbr_dist.materials.noise import Array
from neuropbr_dist.processes import in_parallel

VERSION = 2
"""Raise it when a material or picture changes: old cache folders are then left alone."""


def sample_name(index: int) -> str:
    """Return the name of a built-in sample."""
    return f"sample_{index:04d}"


def material_name(seed: int, index: int) -> str:
    """Return the name of the material of built-in sample (seed, index)."""
    return f"{family_name(seed, index)}_{index:04d}"


def sample_cameras(seed: int, index: int) -> SampleCameras:
    """Return the true cameras of built-in sample (seed, index), whose plane repeats."""
    return SampleCameras({"clean": tuple(c.on_plane() for c in builtin_cameras(seed, index))}, wrap=True)


def sample_views(maps: Array, seed: int, index: int, renders: Renders) -> Array:
    """Return the pictures of built-in sample (seed, index), see `render_views`."""
    from neuropbr_dist.materials.views import (
        render_views,  # torch: 2 s in each process that draws, and in no other
    )

    return render_views(maps, seed, index, dirty=renders == "dirty")


def home() -> Path:
    """Return the user's home. Raises a UserError where there is none, as in some containers."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise UserError(
            f"no home to keep built-in materials in ({error}); data.builtin_cache names a folder"
        ) from error


class BuiltinCache:
    """Maps and views of the built-in set (seed, size), one `.npy` file each.

    Any number of processes may read and fill one folder at once: a file
    appears whole, by one rename, and its bytes don't depend on who made it.

    Args:
        root: folder of the cache. None: `neuropbr_dist` in `$XDG_CACHE_HOME` or `~/.cache`.
        seed: key of the set, 0 or more.
        size: side of maps and views in pixels.
    """

    def __init__(self, root: str | Path | None, seed: int, size: int) -> None:
        if root is None:
            named = Path(os.environ.get("XDG_CACHE_HOME", ""))  # one that isn't absolute is to be ignored
            root = (named if named.is_absolute() else home() / ".cache") / "neuropbr_dist"
        self.root, self.seed, self.size = root, seed, size
        self.folder = Path(root) / f"builtin_v{VERSION}" / f"seed_{seed}_size_{size}"

    def at(self, size: int) -> BuiltinCache:
        """Return the cache of the same materials at another side."""
        return BuiltinCache(self.root, self.seed, size)

    def maps(self, index: int) -> Array:
        """Return maps, uint8 (8, S, S), read-only and memory-mapped; made on first use. See `material_maps`."""
        shape = (8, self.size, self.size)
        return self._load_or_make(
            f"{index:06d}_maps", shape, lambda: material_maps(self.seed, index, self.size)
        )

    def views(self, index: int, renders: Renders) -> Array:
        """Return views, uint8 (3, 3, S, S), read-only and memory-mapped; made on first use. See `render_views`."""
        shape = (3, 3, self.size, self.size)
        return self._load_or_make(
            f"{index:06d}_{renders}", shape, lambda: sample_views(self.maps(index), self.seed, index, renders)
        )

    def missing(self, indices: Iterable[int], kinds: Iterable[Renders] = CURRICULA[1]) -> list[int]:
        """Return those of `indices` that `fill` would have to make; looks at file names only."""
        names = ("maps", *kinds)
        return [i for i in indices if not all((self.folder / f"{i:06d}_{n}.npy").exists() for n in names)]

    def make(self, index: int, kinds: Iterable[Renders]) -> None:
        """Make what is missing of a material."""
        self.maps(index)
        for renders in kinds:
            self.views(index, renders)

    def _load_or_make(self, name: str, shape: tuple[int, ...], make: Callable[[], Array]) -> Array:
        """Return an array of the cache. Raises a UserError if it can't be kept there."""
        path = self.folder / f"{name}.npy"
        try:
            array = _load(path, shape)
            if array is None:
                _save(path, make())
                array = np.lib.format.open_memmap(path, mode="r")
        except OSError as error:
            raise UserError(
                f"{self.folder}: can't keep built-in materials there: {error}; data.builtin_cache names another folder"
            ) from error
        return array


def fill(
    caches: Sequence[BuiltinCache],
    indices: Iterable[int],
    progress: Callable[[int], object] | None = None,
    kinds: Iterable[Renders] = CURRICULA[1],
    workers: int = 1,
) -> None:
    """Make what is missing of these materials in `workers` processes, in caches of several sides at once.

    `progress(1)` is called after each material (`tqdm.update` fits).

    Raises:
        UserError: a file can't be written, or a process was killed. What is done stays.
    """
    make = partial(_make, caches=tuple(caches), kinds=tuple(kinds))
    for _ in in_parallel(make, list(indices), workers, chunk=1):
        if progress:
            progress(1)


def _make(index: int, caches: tuple[BuiltinCache, ...], kinds: tuple[Renders, ...]) -> None:
    for cache in caches:  # one after the other: small sides are filtered from one drawing
        cache.make(index, kinds)


def check_cache_asked(saved: str | None, asked: str | None, where: str) -> None:
    """Raise a UserError for a cache that a saved configuration names and nobody has made: it may be a stranger's.

    Args:
        saved, asked: `data.builtin_cache` of the saved run, and on this command line.
        where: what names the saved run, for the message.
    """
    if saved not in (None, asked) and not BuiltinCache(saved, 0, 0).folder.parent.is_dir():
        raise UserError(
            f"{where}: the saved run keeps built-in samples in {saved}, where there are none; if they are to be made "
            f"there: --set data.builtin_cache={saved}"
        )


def _load(path: Path, shape: tuple[int, ...]) -> Array | None:
    """Return the array in a file, or None if there is none, or one that is damaged or of another shape."""
    if not path.is_file():
        return None
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, *NOT_AN_ARRAY):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _save(path: Path, array: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(buffer := io.BytesIO(), array, allow_pickle=False)
    write_bytes(path, buffer.getbuffer())
