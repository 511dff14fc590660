"""Records in shard files: uint8 arrays, one after another, each with a CRC-32.

A record is read from a memory map, so that the bytes are copied once, into the batch.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from isal import isal_zlib

from neuropbr_dist.errors import UserError

Compression = Literal["none", "deflate"]
COMPRESSIONS: tuple[Compression, ...] = ("none", "deflate")

ALIGNMENT = mmap.ALLOCATIONGRANULARITY
"""Records begin at multiples of it: a map must."""
BLOCK = 256 << 10
"""Bytes copied and summed at a time: they stay in the core's own cache between the two (2 MiB do not)."""
MAPPED_BYTES = 2 << 30
MAPPED_RECORDS = 128
"""What a process keeps mapped at most; maps are page cache, shared by all processes of a machine."""

MADV_POPULATE_READ = 22
"""Linux 5.14: reads a map's pages now, and reports as an error what would be a SIGBUS later."""


class Place(NamedTuple):
    """Where a record stands."""

    shard: str
    offset: int
    nbytes: int
    crc: int
    """CRC-32 of the stored bytes."""


class ShardWriter:
    """Appends records to shard files of its own; several writers may share a folder.

    Args:
        prefix: begins its files' names; no other writer has it.
        limit: bytes after which a new shard is begun.
    """

    def __init__(self, folder: Path, prefix: str, compression: Compression, limit: int) -> None:
        self.folder, self.prefix = folder, prefix
        self.compression, self.limit = compression, limit
        self._path = folder
        self._descriptor: int | None = None
        self._count = self._end = 0

    def append(self, record: np.ndarray) -> Place:
        """Write uint8 (C, H, W); it is on disk when this returns.

        Raises:
            UserError: It can't be written (disk full, say).
        """
        data = encode(record, self.compression)
        try:
            if self._descriptor is None or self._end + len(data) > self.limit:
                self._begin()
            assert self._descriptor is not None
            _write_all(self._descriptor, data, self._end)
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise UserError(
                f"{self._path}: {error.strerror}; what is packed stays: start the same command again to go on"
            ) from error
        place = Place(self._path.name, self._end, len(data), isal_zlib.crc32(data))
        self._end += -(-len(data) // ALIGNMENT) * ALIGNMENT
        return place

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _begin(self) -> None:
        self.close()
        self._path = self.folder / f"{self.prefix}-{self._count:05d}.bin"
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._count, self._end = self._count + 1, 0


class ShardReader:
    """Reads records of a folder of shards, in any order; each is checked every time.

    Only the shards asked for are opened, record by record: the folder may lie on a mounted
    file system and be larger than the local disk.
    """

    def __init__(self, folder: Path, compression: Compression) -> None:
        self.folder, self.compression = folder, compression
        self._maps: OrderedDict[tuple[str, int], mmap.mmap] = OrderedDict()

    def read(self, place: Place, out: np.ndarray, what: str) -> None:
        """Fill `out`, uint8 (C, H, W), contiguous.

        Args:
            what: the record's name, for messages.

        Raises:
            UserError: The shard is missing, cut or can't be read, or the record's checksum is wrong.
        """
        mapped = self._map(place, what)
        stored = memoryview(mapped)[: place.nbytes]
        if self.compression == "none":
            target = out.reshape(-1)
            crc = _copy_and_sum(np.frombuffer(stored, np.uint8), target)
        else:
            crc = isal_zlib.crc32(stored)
        if crc != place.crc:
            raise UserError(
                f"{self.folder / place.shard}: the record of {what} (byte {place.offset}) was altered: "
                f"CRC-32 {crc:08x}, {place.crc:08x} when it was packed; delete it and pack it again"
            )
        if self.compression != "none":
            decode(stored, out)

    def _map(self, place: Place, what: str) -> mmap.mmap:
        key, path = (place.shard, place.offset), self.folder / place.shard
        mapped = self._maps.pop(key, None)
        try:
            if mapped is None:
                mapped = _map_record(path, place)
            size = mapped.size()  # of the file: a map beyond its end is a SIGBUS
        except OSError as error:
            raise UserError(f"{path}: the record of {what}: {error.strerror}") from error
        if size < place.offset + place.nbytes:
            raise UserError(
                f"{path}: truncated: {size} bytes, but the record of {what} "
                f"ends at byte {place.offset + place.nbytes}; delete it and pack it again"
            )
        self._maps[key] = mapped
        while len(self._maps) > MAPPED_RECORDS or sum(map(len, self._maps.values())) > MAPPED_BYTES:
            self._maps.popitem(last=False)
        return mapped


def encode(record: np.ndarray, compression: Compression) -> memoryview:
    """The bytes that are stored for uint8 (C, H, W): as they are, or each row less the one above, deflated."""
    record = np.ascontiguousarray(record)
    if compression == "none":
        return record.data.cast("B")
    rows = record.copy()
    rows[:, 1:] -= record[:, :-1]
    return memoryview(isal_zlib.compress(rows.data, 1))


def decode(stored: memoryview, out: np.ndarray) -> None:
    """Undo `encode` with "deflate" into `out`, uint8 (C, H, W)."""
    out[:] = np.frombuffer(isal_zlib.decompress(stored, bufsize=out.nbytes + 1), np.uint8).reshape(out.shape)
    for row in range(1, out.shape[1]):
        np.add(out[:, row], out[:, row - 1], out=out[:, row])


def used_bytes(places: Sequence[Place]) -> dict[str, int]:
    """Shard -> bytes up to the end of its last record."""
    ends: dict[str, int] = {}
    for place in places:
        ends[place.shard] = max(ends.get(place.shard, 0), place.offset + place.nbytes)
    return ends


def _map_record(path: Path, place: Place) -> mmap.mmap:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < place.offset + place.nbytes:  # `mmap` would only say that its arguments are wrong
            raise OSError(errno.EIO, f"truncated: {size} bytes, {place.offset + place.nbytes} are needed")
        mapped = mmap.mmap(file.fileno(), place.nbytes, access=mmap.ACCESS_READ, offset=place.offset)
    try:
        mapped.madvise(MADV_POPULATE_READ)
    except OSError as error:
        if error.errno != errno.EINVAL:  # older kernels: pages come as they are touched
            raise OSError(errno.EIO, "can't be read from its disk") from error
    return mapped


def _copy_and_sum(source: np.ndarray, target: np.ndarray) -> int:
    crc = 0
    for start in range(0, len(source), BLOCK):
        block = source[start : start + BLOCK]
        crc = isal_zlib.crc32(block.data, crc)
        target[start : start + BLOCK] = block
    return crc


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
