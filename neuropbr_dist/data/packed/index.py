"""The index of a packed set: everything but the pictures.

    DEST/packed.json     format version, sides, shards and their sizes, checksums of the index; written last
    DEST/samples.npy     one row a sample entry, in the order of training: name, source (FOLDERS), material, record
    DEST/materials.npy   one row a material: name, record
    DEST/records.npy     one row a record: shard, offset, bytes, length and CRC-32 of its header
    DEST/<column>.npy    optional: something small of every sample entry, a row each, as in samples.npy (`COLUMNS`)
    DEST/shards/*.bin    records (`records.py`): `views` (3, 3, S, S) of a sample entry, `maps` (8, S, S) of a material

Materials that several samples share are stored once; a set may hold materials alone. The index is read into memory, which
forked processes share: of a memory map a table that is cut short meanwhile would end the run by SIGBUS. Columns stand there
rather than in the records, so that samples can be chosen by their cameras before a picture is touched, and cameras found
later don't move a picture.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuropbr_dist.data.files.entries import CURRICULA
from neuropbr_dist.data.packed.records import LARGEST_SIDE
from neuropbr_dist.data.packed.shards import REPACK, Place, used_bytes
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import NOT_AN_ARRAY, read_bytes, read_json, write_bytes, write_json, writing
from neuropbr_dist.materials.plane import ENCODED

VERSION = 2
"""Raise it when the format changes."""
METADATA = "packed.json"
SHARDS = "shards"
JOURNAL = "journal.jsonl"
INDEX_FILES = ("samples.npy", "materials.npy", "records.npy")
FOLDERS = CURRICULA[1]
"""The column `source` of `samples.npy` counts in it."""

COLUMNS: dict[str, tuple[np.dtype, tuple[int, ...]]] = {"cameras": (np.dtype("<f4"), (3, ENCODED))}
"""The columns that mean something, each with dtype and shape of a row: cameras as batches carry them, see
`materials.plane.encode`."""
FIELDS = {"sides": list, "samples": int, "materials": int, "shards": dict, "index": dict, "origin": str}
_BEYOND_FILES = 1 << 62
_COPY_AGAIN = "copy the set again, or delete it and pack it again"


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return `packed.json`, of this format version.

    Raises:
        UserError: there is no whole packed set, it is of another version, or the file was altered.
    """
    path = folder / METADATA
    if not path.is_file():
        if (folder / JOURNAL).exists():
            raise UserError(
                f"{folder}: packing has not come to its end; go on by the same command again "
                "(python launch/data.py pack IN OUT DEST)"
            )
        missing = f"no {METADATA} in it" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: not a packed set ({missing})")
    try:
        metadata = read_json(path)
        version = metadata["version"]
        if not isinstance(version, int):
            raise TypeError(version)
    except (UserError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not the metadata of a packed set; {REPACK}") from error
    if version != VERSION:
        age = "an older" if version < VERSION else "a newer"
        remedy = REPACK if version < VERSION else f"update this program, or {REPACK}"
        raise UserError(
            f"{folder}: packed in {age} format, version {version}; this program reads version {VERSION}: {remedy}"
        )
    checksum = metadata.pop("checksum", None)
    if checksum != metadata_checksum(metadata) or not _is_sound(metadata):
        raise UserError(f"{path}: altered (its checksum is wrong); {REPACK}")
    return metadata


def _is_sound(metadata: dict[str, Any]) -> bool:
    """Return whether the fields are there, of their types, and name no file outside the set."""
    return (
        all(type(metadata.get(name)) is kind for name, kind in FIELDS.items())
        and all(re.fullmatch(r"\w+\.npy", name) for name in metadata["index"])
        and all(name in metadata["index"] for name in INDEX_FILES)
        and all(
            re.fullmatch(r"[\w-]+\.bin", name) and type(size) is int
            for name, size in metadata["shards"].items()
        )
        and bool(metadata["sides"])
        and all(type(side) is int and 0 < side <= LARGEST_SIDE for side in metadata["sides"])
    )


def metadata_checksum(metadata: dict[str, Any]) -> str:
    """Return the SHA-256 of `packed.json`'s content, its own checksum left out."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def write_index(
    folder: Path,
    entries: Sequence[tuple[str, str, str]],
    views: Sequence[Place],
    maps: Mapping[str, Place],
    columns: Mapping[str, np.ndarray] | None = None,
    *,
    sides: Sequence[int],
    origin: str,
) -> None:
    """Make a set visible, by one rename, once all its records are on disk; or give it other columns.

    A set that is visible with another index is not while this writes.

    Args:
        entries: (name, renders, material) in the order of training.
        views: places of their views.
        maps: material to the place of its maps; also of materials that no entry names.
        columns: name to an array with a row for each entry; see `COLUMNS`.
        sides: of all pictures, in pixels.
        origin: hash of the pictures and their names.

    Raises:
        UserError: it can't be written.
    """
    places = [*views, *maps.values()]
    tables = {**_tables(entries, places, maps), **{f"{name}.npy": a for name, a in (columns or {}).items()}}
    contents = {name: _npy(array) for name, array in tables.items()}
    metadata: dict[str, Any] = {
        "version": VERSION,
        "sides": sorted(set(sides)),
        "samples": len(entries),
        "materials": len(maps),
        "shards": used_bytes(places),
        "index": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        "origin": origin,
    }
    with writing(folder):
        if (folder / METADATA).exists():
            if read_metadata(folder) == metadata:
                return
            (folder / METADATA).unlink()
        for name, content in contents.items():
            write_bytes(folder / name, content, durable=True)
        write_json(
            folder / METADATA, {**metadata, "checksum": metadata_checksum(metadata)}, durable=True, indent=1
        )


def _tables(
    entries: Sequence[tuple[str, str, str]], places: Sequence[Place], maps: Mapping[str, Place]
) -> dict[str, np.ndarray]:
    materials = {material: row for row, material in enumerate(maps)}
    rows = [
        (name.encode(), FOLDERS.index(renders), materials[material], row)  # type: ignore[arg-type]
        for row, (name, renders, material) in enumerate(entries)
    ]
    named = [(material.encode(), len(entries) + row) for material, row in materials.items()]
    stored = [(place.shard.encode(), *place[1:]) for place in places]
    return {
        "samples.npy": table(rows, source="u1", material="<u4", record="<u4"),
        "materials.npy": table(named, record="<u4"),
        "records.npy": table(stored, offset="<u8", nbytes="<u8", header="<u4", crc="<u4"),
    }


def table(rows: list[tuple[Any, ...]], **columns: str) -> np.ndarray:
    """Return a structured array whose first column, `name`, holds UTF-8."""
    width = max((len(row[0]) for row in rows), default=1)
    return np.array(rows, dtype=[("name", f"S{width}"), *columns.items()])


def _npy(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array, allow_pickle=False)
    return file.getvalue()


def _array(content: bytes) -> np.ndarray:
    """Return what `_npy` has made bytes of, read-only and without a copy.

    Raises:
        any of NOT_AN_ARRAY: they aren't such bytes, or fewer than their header says.
    """
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another version of the format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    flat = np.frombuffer(content, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


class PackedIndex:
    """The tables of a packed set, opened and checked.

    Raises:
        UserError: see `read_metadata`; or a table is missing or was altered.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.metadata = folder, read_metadata(folder)
        self.samples, self.materials, self.records = (self._table(name) for name in INDEX_FILES)
        names = (name.removesuffix(".npy") for name in self.metadata["index"] if name not in INDEX_FILES)
        self.columns = {name: self._table(f"{name}.npy") for name in names}
        self._check()

    def place(self, record: int) -> Place:
        """Return the place of a record."""
        shard, *rest = self.records[record].item()
        return Place(shard.decode(), *rest)

    def check_shards(self) -> None:
        """See that every shard is there, with all its records.

        Raises:
            UserError: One is missing or cut.
        """
        for name, nbytes in self.metadata["shards"].items():
            path = self.folder / SHARDS / name
            found = path.stat().st_size if path.exists() else None
            if found is None or found < nbytes:
                problem = "missing" if found is None else f"truncated: {found} bytes of {nbytes}"
                raise UserError(f"{path}: {problem}; {_COPY_AGAIN}")

    def _table(self, name: str) -> np.ndarray:
        path = self.folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing; {_COPY_AGAIN}")
        content = read_bytes(path, 1 << 40)
        if hashlib.sha256(content).hexdigest() != self.metadata["index"][name]:
            raise UserError(f"{path}: altered (its checksum is wrong); {_COPY_AGAIN}")
        try:
            return _array(content)
        except NOT_AN_ARRAY as error:
            raise UserError(f"{path}: not a table of a packed set; {_COPY_AGAIN}") from error

    def _check(self) -> None:
        """Check that rows point to rows that are there, and that columns are what their names say."""
        samples, materials, records = self.samples, self.materials, self.records
        kinds = _tables([], [], {}).values()
        sound = (
            all(map(_same_columns, (samples, materials, records), kinds))
            and _below(samples["source"], len(FOLDERS))
            and _below(samples["material"], len(materials))
            and _below(samples["record"], len(records))
            and _below(materials["record"], len(records))
            and _below(records["offset"], _BEYOND_FILES)
            and {name.decode("latin-1") for name in np.unique(records["name"])}
            <= set(self.metadata["shards"])
            and all(_is_utf8(table["name"]) for table in (samples, materials))
        )
        for name, column in self.columns.items():
            dtype, shape = COLUMNS.get(name, (column.dtype, column.shape[1:]))
            sound = sound and column.shape == (len(samples), *shape) and column.dtype == dtype
            sound = sound and not (column.dtype.kind == "f" and not np.isfinite(column).all())
        if not sound:
            raise UserError(f"{self.folder}: its index doesn't hang together; {_COPY_AGAIN}")


def _same_columns(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether tables have the same columns; names are bytes of any length."""
    if one.ndim != 1 or one.dtype.names != other.dtype.names:
        return False
    return one.dtype["name"].kind == "S" and one.dtype.descr[1:] == other.dtype.descr[1:]


def _is_utf8(names: np.ndarray) -> bool:
    try:
        names.tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def _below(values: np.ndarray, end: int) -> bool:
    return bool((values < end).all())
