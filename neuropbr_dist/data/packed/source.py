"""A packed set: every picture decoded once, read at the speed of a copy, at the size that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuropbr_dist.data.cameras import NOT_KNOWN
from neuropbr_dist.data.files.decode import resize
from neuropbr_dist.data.files.entries import CURRICULA
from neuropbr_dist.data.packed.index import FOLDERS, SHARDS, PackedIndex
from neuropbr_dist.data.packed.records import level_sides
from neuropbr_dist.data.packed.shards import Record, ShardReader
from neuropbr_dist.data.sources import Source
from neuropbr_dist.data.split import Subset
from neuropbr_dist.errors import UserError


class PackedEntry(NamedTuple):
    """A sample from one of its render folders."""

    name: str
    renders: str
    material: str
    row: int
    """Row of the entry in `samples.npy`, and in every column."""

    @property
    def key(self) -> str:
        return f"{self.renders}/{self.name}"


class PackedEntries(Sequence[PackedEntry]):
    """All rows of the index; each is made into an entry when it is asked for."""

    def __init__(self, samples: np.ndarray, materials: np.ndarray) -> None:
        self._samples, self._materials = samples, materials

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, row: int) -> PackedEntry:  # type: ignore[override]
        name, renders, material, _ = self._samples[row].item()
        return PackedEntry(name.decode(), FOLDERS[renders], self._materials["name"][material].decode(), row)

    def of(self, curriculum: int) -> Subset[PackedEntry]:
        """Return those of a render curriculum."""
        chosen = [FOLDERS.index(folder) for folder in CURRICULA[curriculum]]
        return Subset(self, np.flatnonzero(np.isin(self._samples["source"], chosen)))


class PackedSet:
    """A packed set, opened: entries, materials and columns, and their pictures at any side.

    Args:
        size: side in pixels of what is read. A side at which a picture is stored (`records.level_sides`) is read as it is
            and nothing else is; another is resized from the picture's own, as from PNG files. None: the set's own.

    Raises:
        UserError: There is no whole packed set, it is of another format version, its index was altered, or its pictures
            have several sides and `size` is None.
    """

    def __init__(self, folder: Path | str, size: int | None = None) -> None:
        self.folder = Path(folder)
        self.index = PackedIndex(self.folder)
        sides = self.index.metadata["sides"]
        if size is None and len(sides) > 1:
            raise UserError(
                f"{self.folder}: its pictures have {', '.join(map(str, sides))} px; set data.image_size to one side for all"
            )
        self.native_size = max(sides)
        self.size = size or self.native_size
        self.entries = PackedEntries(self.index.samples, self.index.materials)
        self._reader = ShardReader(self.folder / SHARDS)

    def __reduce__(self) -> tuple[Any, ...]:  # a spawned process maps the index and opens the shards anew
        return PackedSet, (self.folder, self.size)

    @property
    def stored_sides(self) -> list[int]:
        """The sides in pixels at which every picture is stored, rising; the set's own where its pictures have several."""
        of_all = [set(level_sides(side)) for side in self.index.metadata["sides"]]
        return sorted(set.intersection(*of_all)) or [self.native_size]

    @property
    def materials(self) -> list[str]:
        """The names of all materials, in the order of `maps`; no entry need name one."""
        return [name.decode() for name in self.index.materials["name"]]

    def column(self, name: str) -> np.ndarray | None:
        """Return something of every entry (see `index.COLUMNS`), by its row; None if the set doesn't hold it."""
        return self.index.columns.get(name)

    def views(self, entry: PackedEntry, outs: Sequence[np.ndarray], tops: Sequence[int] = (0, 0, 0)) -> None:
        """Fill three arrays, uint8 (3, h, S), with rows of an entry's views.

        Args:
            outs: each of as many rows as are wanted of its view; of none nothing is read.
            tops: the first of these rows.

        Raises:
            UserError: they are missing, cut or altered.
        """
        record = self._record(self.index.samples["record"][entry.row], "views", entry.key)
        for view, (out, top) in enumerate(zip(outs, tops, strict=True)):
            self._read(record, "views", out, top, view)

    def maps(self, material: int, out: np.ndarray, row: int = 0) -> None:
        """Fill `out`, uint8 (8, h, S), with rows `row` to `row + h` of the maps of `materials[material]`.

        Raises:
            UserError: they are missing, cut or altered.
        """
        name, number = self.index.materials[material].item()
        self._read(self._record(number, "maps", f"material {name.decode()!r}"), "maps", out, row)

    def _record(self, number: int, name: str, whose: str) -> Record:
        return Record(self._reader, self.index.place(number), f"the {name} of {whose}")

    def _read(self, record: Record, name: str, out: np.ndarray, row: int, part: int | None = None) -> None:
        channels, rows, side = out.shape
        sides = record.sides(name)
        if side in sides:
            record.read(name, out, row, part)
        elif rows:
            native = np.empty((channels, sides[-1], sides[-1]), np.uint8)
            record.read(name, native, part=part)
            np.copyto(out, resize(native, side)[:, row : row + rows])


class PackedSource(Source):
    """The entries of a packed set; their pictures have the same bits as those of the PNG files it was made from.

    Args:
        curriculum: see `data.render_curriculum`.
        size: side in pixels, as for `PackedSet`.

    Raises:
        UserError: see `PackedSet`; or the curriculum has no samples.
    """

    def __init__(self, folder: Path | str, curriculum: int, size: int | None = None) -> None:
        self.set = PackedSet(folder, size)
        self.folder, self.curriculum, self.size = self.set.folder, curriculum, self.set.size
        self.entries = self.set.entries.of(curriculum)
        if not self.entries:
            others, materials = len(self.set.entries), len(self.set.materials)
            held = f"{others} of the other kind" if others else f"{materials} materials without renders"
            raise UserError(
                f"{self.folder}: no samples for data.render_curriculum = {curriculum} "
                f"({' or '.join(CURRICULA[curriculum])} renders); it holds {held}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedSource, (self.folder, self.curriculum, self.size)

    @property
    def stored_sides(self) -> Sequence[int]:  # type: ignore[override]
        return self.set.stored_sides

    def at(self, size: int) -> PackedSource:
        return type(self)(self.folder, self.curriculum, size)

    def check_shards(self) -> None:
        """See that every shard is there, with all its records.

        Raises:
            UserError: One is missing or cut.
        """
        self.set.index.check_shards()

    def cameras(self, entry: PackedEntry) -> np.ndarray:
        column = self.set.column("cameras")
        return NOT_KNOWN if column is None else column[entry.row]

    def load(self, entry: PackedEntry) -> tuple[np.ndarray, np.ndarray]:
        views = np.empty((3, 3, self.size, self.size), np.uint8)
        maps = np.empty((8, self.size, self.size), np.uint8)
        self.load_into(entry, list(views), maps)
        return views, maps

    def load_into(
        self,
        entry: PackedEntry,
        views: Sequence[np.ndarray],
        maps: np.ndarray,
        tops: Sequence[int] = (0, 0, 0, 0),
    ) -> None:
        self.set.views(entry, views, tops[:3])
        self.set.maps(int(self.set.index.samples["material"][entry.row]), maps, tops[3])
