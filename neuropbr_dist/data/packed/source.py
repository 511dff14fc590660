"""A packed set: every picture decoded once, in shards that are read at the speed of a copy.

    DEST/packed.json     format version, side, compression, shards and their sizes; written last
    DEST/samples.npy     one row a sample entry, in the order of training: name, source, material, record
    DEST/materials.npy   one row a material: name, record
    DEST/records.npy     one row a record: shard, offset, bytes, CRC-32
    DEST/shards/*.bin    records: views uint8 (9, S, S) of a sample entry, maps uint8 (8, S, S) of a material

Materials that several samples share are stored once. The index is memory-mapped: processes share it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuropbr_dist.data.files.decode import resize
from neuropbr_dist.data.files.layout import SOURCES
from neuropbr_dist.data.packed.shards import COMPRESSIONS, Place, ShardReader, used_bytes
from neuropbr_dist.data.sources import Source
from neuropbr_dist.data.split import Subset
from neuropbr_dist.errors import UserError

VERSION = 1
"""Raise it when the format changes."""
HEAD = "packed.json"
SHARDS = "shards"
JOURNAL = "journal.jsonl"
INDEX_FILES = ("samples.npy", "materials.npy", "records.npy")
FOLDERS = SOURCES[1]


class PackedEntry(NamedTuple):
    """A sample from one of its render folders."""

    name: str
    source: str
    material: str
    row: int
    """Of `samples.npy`."""

    @property
    def key(self) -> str:
        return f"{self.source}/{self.name}"


class PackedEntries(Sequence[PackedEntry]):
    """All rows of the index; each is made into an entry when it is asked for."""

    def __init__(self, samples: np.ndarray, materials: np.ndarray) -> None:
        self._samples, self._materials = samples, materials

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, row: int) -> PackedEntry:  # type: ignore[override]
        name, source, material, _ = self._samples[row].item()
        return PackedEntry(name.decode(), FOLDERS[source], self._materials["name"][material].decode(), row)

    def of(self, curriculum: int) -> Subset[PackedEntry]:
        """Those of a render curriculum."""
        chosen = [FOLDERS.index(folder) for folder in SOURCES[curriculum]]
        return Subset(self, np.flatnonzero(np.isin(self._samples["source"], chosen)))


class PackedSource(Source):
    """A packed set, opened; its pictures have the same bits as those of the PNG files it was made from.

    Args:
        curriculum: see `data.render_curriculum`.
        size: side in pixels to resize to; None: the set's own.

    Raises:
        UserError: There is no whole packed set, it is of another format version, its index was
            altered, or the curriculum has no samples.
    """

    def __init__(self, folder: Path | str, curriculum: int, size: int | None = None) -> None:
        self.folder, self.curriculum = Path(folder), curriculum
        self.head = read_head(self.folder)
        self.native_size = int(self.head["size"])
        self.size = size or self.native_size
        self._samples, self._materials, self._records = (
            _open_index(self.folder, name, self.head["index"][name]) for name in INDEX_FILES
        )
        self._reader = ShardReader(self.folder / SHARDS, self.head["compression"])
        self.entries = PackedEntries(self._samples, self._materials).of(curriculum)
        if not self.entries:
            raise UserError(
                f"{self.folder}: no samples for data.render_curriculum = {curriculum} "
                f"({' or '.join(SOURCES[curriculum])} renders); it holds {len(self._samples)} of the other kind"
            )

    def __reduce__(self) -> tuple[Any, ...]:  # a spawned worker maps the index anew
        own = None if self.size == self.native_size else self.size
        return PackedSource, (self.folder, self.curriculum, own)

    def check_shards(self) -> None:
        """Every shard is there, with all its records.

        Raises:
            UserError: One is missing or cut.
        """
        for name, nbytes in self.head["shards"].items():
            path = self.folder / SHARDS / name
            found = path.stat().st_size if path.exists() else None
            if found is None or found < nbytes:
                problem = "missing" if found is None else f"truncated: {found} bytes of {nbytes}"
                raise UserError(f"{path}: {problem}; copy the set again, or delete it and pack it again")

    def load(self, entry: PackedEntry) -> tuple[np.ndarray, np.ndarray]:
        views = np.empty((3, 3, self.size, self.size), np.uint8)
        maps = np.empty((8, self.size, self.size), np.uint8)
        self.load_into(entry, views, maps)
        return views, maps

    def load_into(self, entry: PackedEntry, views: np.ndarray, maps: np.ndarray) -> None:
        _, _, material, record = self._samples[entry.row].item()
        self._read(record, views.reshape(9, self.size, self.size), f"the views of {entry.key}")
        what = f"the maps of material {entry.material!r}"
        self._read(int(self._materials["record"][material]), maps, what)

    def _read(self, record: int, out: np.ndarray, what: str) -> None:
        shard, *rest = self._records[record].item()
        place = Place(shard.decode(), *rest)
        if self.size == self.native_size:
            self._reader.read(place, out, what)
            return
        native = np.empty((len(out), self.native_size, self.native_size), np.uint8)
        self._reader.read(place, native, what)
        out[:] = resize(native, self.size)


def read_head(folder: Path) -> dict[str, Any]:
    """`packed.json`, of this format version."""
    path = folder / HEAD
    repack = "delete it and pack it again: python launch/data.py pack IN OUT DEST"
    if not path.is_file():
        if (folder / JOURNAL).exists():
            raise UserError(
                f"{folder}: packing has not come to its end; go on by the same command again "
                "(python launch/data.py pack IN OUT DEST)"
            )
        missing = f"no {HEAD} in it" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: not a packed set ({missing})")
    try:
        head = json.loads(path.read_text())
        version = head["version"]
        if not isinstance(version, int):
            raise TypeError(version)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not the head of a packed set; {repack}") from error
    if version != VERSION:
        age = "an older" if version < VERSION else "a newer"
        remedy = repack if version < VERSION else f"update this program, or {repack}"
        raise UserError(
            f"{folder}: packed in {age} format, version {version}; this program reads version {VERSION}: {remedy}"
        )
    checksum = head.pop("checksum", None)
    if checksum != head_checksum(head) or head["compression"] not in COMPRESSIONS:
        raise UserError(f"{path}: altered (its checksum is wrong); {repack}")
    return head


def head_checksum(head: dict[str, Any]) -> str:
    """SHA-256 of `packed.json`'s content, its own checksum left out."""
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def write_index(
    folder: Path,
    entries: Sequence[tuple[str, str, str]],
    views: Sequence[Place],
    maps: dict[str, Place],
    **head: Any,
) -> None:
    """Make a set visible, by one rename, once all its records are on disk.

    Args:
        entries: (name, source, material) in the order of training.
        views: places of their views.
        maps: material to the place of its maps.
        head: fields of `packed.json`: size, compression, origin.
    """
    materials = {material: row for row, material in enumerate(maps)}
    places = [*views, *maps.values()]
    rows = [
        (name.encode(), FOLDERS.index(source), materials[material], row)  # type: ignore[arg-type]
        for row, (name, source, material) in enumerate(entries)
    ]
    named = [(material.encode(), len(views) + row) for material, row in materials.items()]
    tables = {
        "samples.npy": table(rows, source="u1", material="<u4", record="<u4"),
        "materials.npy": table(named, record="<u4"),
        "records.npy": table(
            [(place.shard.encode(), *place[1:]) for place in places], offset="<u8", nbytes="<u8", crc="<u4"
        ),
    }
    for name, rows_ in tables.items():
        _write_durably(folder / name, lambda file, rows_=rows_: np.save(file, rows_, allow_pickle=False))  # type: ignore[misc]
    head |= {
        "version": VERSION,
        "samples": len(entries),
        "materials": len(maps),
        "shards": used_bytes(places),
        "index": {name: _sha256(folder / name) for name in INDEX_FILES},
    }
    text = json.dumps({**head, "checksum": head_checksum(head)}, indent=1).encode()
    _write_durably(folder / HEAD, lambda file: file.write(text + b"\n"))


def table(rows: list[tuple[Any, ...]], **columns: str) -> np.ndarray:
    """A structured array whose first column, `name`, holds UTF-8."""
    width = max((len(row[0]) for row in rows), default=1)
    return np.array(rows, dtype=[("name", f"S{width}"), *columns.items()])


def _write_durably(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        descriptor = os.open(path.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _open_index(folder: Path, name: str, checksum: str) -> np.ndarray:
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path}: missing; copy the set again, or delete it and pack it again")
    if _sha256(path) != checksum:
        raise UserError(
            f"{path}: altered (its checksum is wrong); copy the set again, or delete it and pack it again"
        )
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
