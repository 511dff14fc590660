"""Records of a checkpoint folder about itself: JSON, and the configuration as YAML.

    manifest.json        format, save id, serial, names, and each file's size and SHA-256; written last
    tensors.json         each tensor's dtype, shape and pieces: [start, elements, file, offset in bytes]
    state.json           the run's state apart from tensors
    config.yaml          the run's configuration
    shard_RRRRR_NNN.bin  raw little-endian elements, written by rank RRRRR

SHA-256 is the fastest hash of the standard library on CPUs with SHA instructions
(1.4 GB/s a core, BLAKE2b 1.0), and `sha256sum` can check it by hand. It finds damage; it doesn't
prove who wrote a file. So nothing that is read here can run code: no pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch

from neuropbr_dist.errors import UserError
from neuropbr_dist.files import read_json, read_text, sync

FORMAT = 1
MANIFEST, TENSORS, STATE, CONFIG = "manifest.json", "tensors.json", "state.json", "config.yaml"
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
BLOCK_BYTES = 2**22


class Damaged(ValueError):
    """A file of a checkpoint that isn't what it should be."""


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Record of a save: its files with their sizes and sums. Written last."""

    save_id: str
    """Random, the same in `tensors.json`: a manifest from another save is found by it."""
    serial: int
    """Counts the saves in the run's folder. The order of saves: step numbers fall back on a resume."""
    names: list[str]
    """Names that this save carries in the run's folder, e.g. `latest`."""
    files: dict[str, FileRecord]
    """Every other file of the folder."""


@dataclass(frozen=True)
class Piece:
    """Place of a part of a tensor."""

    start: int
    """Offset in the flattened tensor, in elements."""
    numel: int
    file: str
    offset: int
    """Offset in the file, in bytes."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in its pieces."""

    dtype: torch.dtype
    shape: torch.Size
    pieces: list[Piece]
    """Sorted, without gaps or overlaps, from 0 to the tensor's end."""

    def __post_init__(self) -> None:
        end = 0
        for piece in self.pieces:
            if piece.start != end:
                raise ValueError(
                    f"elements {min(end, piece.start)} to {max(end, piece.start)} are stored twice or never"
                )
            end += piece.numel
        if end != self.shape.numel():
            raise ValueError(f"elements {end} to {self.shape.numel()} are missing")


def write_json(path: Path, content: Any) -> FileRecord:
    """Write `content`, flushed to the device; returns its size and checksum."""
    return write_bytes(path, json.dumps(content, separators=(",", ":")).encode())


def write_bytes(path: Path, content: bytes) -> FileRecord:
    """Write a small file, flushed to the device."""
    path.write_bytes(content)
    sync(path)
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with its own checksum in it, last of all files."""
    content = {"format": FORMAT, **asdict(manifest)}
    write_json(folder / MANIFEST, {**content, "sha256": _own_checksum(content)})


def read_manifest(folder: Path) -> Manifest:
    """Return what the manifest says, each value of its type.

    Raises:
        Damaged: it is missing, can't be read, or isn't a manifest.
        UserError: another format version.
    """
    content = _read_json(folder / MANIFEST)
    if content.pop("sha256", None) != _own_checksum(content):
        raise Damaged("altered: its own checksum differs")
    _check_format(content.pop("format", None), folder)
    with _schema():
        files = {
            _plain(name): FileRecord(_count(record["bytes"]), _text(record["sha256"]))
            for name, record in content["files"].items()
        }
        names = [plain_name(_text(name)) for name in _list(content["names"])]
        _require(all(map(_NAMES.fullmatch, names)), f"names {names}")
        unlisted = {TENSORS, STATE, CONFIG} - set(files)
        _require(not unlisted, f"{min(unlisted, default='')} isn't listed")
        return Manifest(_text(content["save_id"]), _count(content["serial"]), names, files)


def write_tensors(folder: Path, save_id: str, tensors: dict[str, StoredTensor]) -> FileRecord:
    """Write where each tensor's pieces lie."""
    entries = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "pieces": [[p.start, p.numel, p.file, p.offset] for p in tensor.pieces],
        }
        for name, tensor in tensors.items()
    }
    return write_json(folder / TENSORS, {"save_id": save_id, "tensors": entries})


def read_tensors(folder: Path, manifest: Manifest) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint by name.

    Every byte range is checked against the manifest: no tensor is left partly unread, and no byte stands for two.

    Raises:
        Damaged: not JSON, of another save, or with pieces that don't make up a tensor.
    """
    content = _read_json(folder / TENSORS)
    if content.get("save_id") != manifest.save_id:
        raise Damaged(f"of another save than {MANIFEST}")
    with _schema():
        tensors = {_text(name): _stored(name, entry) for name, entry in content["tensors"].items()}
        used: dict[str, list[tuple[int, int]]] = {}
        for tensor in tensors.values():
            for piece in tensor.pieces:
                end = piece.offset + piece.numel * tensor.dtype.itemsize
                used.setdefault(piece.file, []).append((piece.offset, end))
        for file, ranges in used.items():
            _require(_SHARD.fullmatch(file) is not None, f"{file} isn't a shard")
            _require(max(ranges)[1] <= manifest.files[file].bytes, f"a tensor lies outside of {file}")
            ranges.sort()
            apart = all(one[1] <= other[0] for one, other in pairwise(ranges))
            _require(apart, f"two tensors lie in the same bytes of {file}")
        return tensors


def _stored(name: str, entry: Any) -> StoredTensor:
    shape = [_count(side) for side in _list(entry["shape"])]
    numel = prod(shape)
    _require(numel <= MOST, f"{name} has too many elements")
    _require(len(_list(entry["pieces"])) <= max(1, numel), f"{name} has empty pieces")
    pieces = [
        Piece(_count(start), _count(count), _text(file), _count(offset))
        for start, count, file, offset in map(_list, _list(entry["pieces"]))
    ]
    _require(len(pieces) < 2 or all(piece.numel for piece in pieces), f"{name} has empty pieces")
    return StoredTensor(DTYPES[_text(entry["dtype"])], torch.Size(shape), pieces)


def read_state(folder: Path) -> dict[str, Any]:
    """Return the run's state apart from tensors. Raises Damaged."""
    return _read_json(folder / STATE)


def read_config(folder: Path) -> str:
    """Return the run's configuration as YAML text. Raises Damaged."""
    with _reading(folder / CONFIG):
        return read_text(folder / CONFIG)


def file_fault(path: Path, expected: FileRecord) -> str | None:
    """Return the fault of one file of a checkpoint as `name: fault`, or None if it is sound."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            return f"{path.name}: not a regular file"
        if found.st_size != expected.bytes:
            return f"{path.name}: {found.st_size} bytes instead of {expected.bytes}"
        if _hash(path) != expected.sha256:
            return f"{path.name}: altered (SHA-256 differs)"
    except FileNotFoundError:
        return f"{path.name}: missing"
    except OSError as error:
        return f"{path.name}: can't be read: {error.strerror}"
    return None


def _hash(path: Path) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise Damaged for whatever keeps a file of a checkpoint from being read."""
    if not os.path.lexists(path):
        raise Damaged("missing")
    if path.is_symlink():
        raise Damaged("not a regular file")
    try:
        yield
    except UserError as error:
        raise Damaged(str(error).removeprefix(f"{path}: ")) from error


def _read_json(path: Path) -> dict[str, Any]:
    with _reading(path):
        content = read_json(path)
    if not isinstance(content, dict):
        raise Damaged("not a JSON object")
    return content


# -- values of a type --------------------------------------------------------------------------

MOST = 2**62
"""Largest count of elements, bytes or saves that a file may give."""
_NAMES = re.compile(r"[a-z_]{1,64}(_\d{4,20})?")
_SHARD = re.compile(r"shard_\d{5,9}_\d{3,9}\.bin")


@contextmanager
def _schema() -> Iterator[None]:
    """Raise Damaged for a value of another type or range than it should have."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise Damaged(f"malformed: {error}") from error


def _require(ok: bool, what: str) -> None:
    if not ok:
        raise ValueError(what)


def _count(value: Any) -> int:
    _require(type(value) is int and 0 <= value <= MOST, f"{value!r:.40} isn't a count")
    return value


def _text(value: Any) -> str:
    _require(isinstance(value, str), f"{value!r:.40} isn't text")
    return value


def _list(value: Any) -> list[Any]:
    _require(isinstance(value, list), f"{value!r:.40} isn't a list")
    return value


def _plain(name: str) -> str:
    _require(
        len(name) < 200 and name.isascii() and name.isprintable() and name != MANIFEST, f"name {name!r:.40}"
    )
    return plain_name(name)


def _check_format(found: Any, folder: Path) -> None:
    if type(found) is not int:
        raise Damaged("no format version")
    if found != FORMAT:
        advice = (
            "written by a newer version, update this package"
            if found > FORMAT
            else "written by an older version"
        )
        raise UserError(
            f"{folder} has checkpoint format {found!r:.20}, this version reads {FORMAT} ({advice})"
        )


def _own_checksum(content: dict[str, Any]) -> str:
    # Part of every format version: a flipped digit of the version itself must count as damage.
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def plain_name(name: str) -> str:
    """Return `name` itself, if it is one entry of a folder; else raise ValueError."""
    if name != os.path.basename(name) or name in ("", ".", ".."):
        raise ValueError(f"file name {name!r} leaves the folder")
    return name
