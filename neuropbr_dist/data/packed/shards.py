"""Shard files: records one after another.

A level is read with `pread` straight into the batch, block by block, and summed while it is in the core's own cache
(`benchmarks/results/2026-11-30-packed.md`). A file that is cut or can't be read while it is read is an error, where from a
memory map it would be a SIGBUS.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from isal import isal_zlib

from neuropbr_dist.data.packed.records import Level, aligned, decode_header, encode
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import writing

OPEN_SHARDS = 64
"""A process keeps no more shards open."""
ANNOUNCED_BYTES = 4 << 20
"""Shorter runs are announced to the system, which else reads beyond their end; longer ones it reads well by itself."""
ANNOUNCED_STEP = 128 << 10
"""Bytes announced at a time: Linux heeds no more than a device's `read_ahead_kb`, whose default this is."""
GO_ON = "; what is packed stays: start the same command again to go on"
REPACK = "delete the set and pack it again: python launch/data.py pack IN OUT DEST"


class Place(NamedTuple):
    """The place of a record."""

    shard: str
    offset: int
    nbytes: int
    header: int
    """Bytes of the record's header."""
    crc: int
    """The CRC-32 of its header."""


class ShardWriter:
    """Appends records to shard files of its own; several writers may share a folder.

    Args:
        prefix: begins its files' names; no other writer has it.
        limit: bytes after which a new shard is begun.
    """

    def __init__(self, folder: Path, prefix: str, limit: int) -> None:
        self.folder, self.prefix, self.limit = folder, prefix, limit
        self._path = folder
        self._descriptor: int | None = None
        self._count = self._end = 0

    def append(self, arrays: Mapping[str, np.ndarray]) -> Place:
        """Write a record of `arrays`, (…, H, W) each; it is on disk when this returns.

        Raises:
            UserError: It can't be written (disk full, say).
        """
        header, levels = encode(arrays)
        nbytes = max([len(header), *(offset + level.nbytes for offset, level in levels)])
        if self._descriptor is None or self._end + nbytes > self.limit:
            self._begin()
        assert self._descriptor is not None
        with writing(self._path, GO_ON):
            for offset, level in levels:
                _write_all(self._descriptor, level.data.cast("B"), self._end + offset)
            _write_all(self._descriptor, memoryview(header), self._end)
            os.fdatasync(self._descriptor)
        place = Place(self._path.name, self._end, nbytes, len(header), isal_zlib.crc32(header))
        self._end = aligned(self._end + nbytes)
        return place

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _begin(self) -> None:
        self.close()
        self._path = self.folder / f"{self.prefix}-{self._count:05d}.bin"
        with writing(self._path, GO_ON):
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._count, self._end = self._count + 1, 0


class Record:
    """A record whose header has been read and checked.

    Args:
        what: its name, for messages.

    Raises:
        UserError: the shard is missing, cut or can't be read, or the header's checksum is wrong.
    """

    def __init__(self, reader: ShardReader, place: Place, what: str) -> None:
        self._reader, self._place, self._what = reader, place, what
        header = np.empty(place.header, np.uint8)
        reader.fill(header, place, place.offset, what)
        self._data = place.offset + aligned(place.header)  # byte of the shard from which offsets count
        try:
            if isal_zlib.crc32(header) != place.crc:
                raise ValueError("its checksum is wrong")
            self._arrays = decode_header(header.tobytes())
        except ValueError as error:
            raise self._altered("the header", place.offset) from error

    def sides(self, name: str) -> list[int]:
        """Return the sides in pixels at which array `name` is stored, the smallest first.

        Raises:
            UserError: the record has no such array.
        """
        if name not in self._arrays:
            raise UserError(f"{self._path}: the record of {self._what} holds no {name}; {REPACK}")
        return [level.side for level in self._arrays[name]]

    def read(self, name: str, out: np.ndarray, row: int = 0, part: int | None = None) -> None:
        """Fill `out`, (…, h, S) in C order, with rows `row` to `row + h` of array `name` at side S.

        Every block that is touched is checked, every time; no other byte is read.

        Args:
            part: index on the array's first axis, which `out` doesn't have then; None: all of it.

        Raises:
            UserError: the array isn't stored at that side, or has other channels or fewer rows; the shard is cut or can't
                be read; or a checksum is wrong.
        """
        level = self._level(name, out, row, part)
        height, width = level.shape[-2:]
        row_bytes = width * out.itemsize
        channels = out.reshape(math.prod(out.shape[:-2]), *out.shape[-2:])
        before = (part or 0) * len(channels)
        per_channel = -(-height // level.rows)
        blocks = range(row // level.rows, -(-(row + out.shape[-2]) // level.rows))
        spare = np.empty((level.rows, width), out.dtype)  # for blocks of which `out` takes some rows only
        self._announce(level, blocks, range(before, before + len(channels)), row_bytes)
        for c, channel in enumerate(channels, before):
            for b in blocks:
                first, last = b * level.rows, min((b + 1) * level.rows, height)
                wanted = channel[max(first - row, 0) : last - row]
                block = wanted if len(wanted) == last - first else spare[: last - first]
                start = self._data + level.offset + (c * height + first) * row_bytes
                self._reader.fill(block, self._place, start, self._what)
                if isal_zlib.crc32(block) != level.crcs[c * per_channel + b]:
                    raise self._altered(f"{level.side} px", start)
                if block is not wanted:
                    skipped = max(row - first, 0)
                    wanted[:] = block[skipped : skipped + len(wanted)]

    def _announce(self, level: Level, blocks: range, channels: range, row_bytes: int) -> None:
        """Let the system fetch the runs of bytes that these blocks are, and no others."""
        height = level.shape[-2]
        run = (min(blocks.stop * level.rows, height) - blocks.start * level.rows) * row_bytes
        whole = run == height * row_bytes
        for c in channels[:1] if whole else channels:
            start = self._data + level.offset + (c * height + blocks.start * level.rows) * row_bytes
            self._reader.announce(self._place.shard, start, run * len(channels) if whole else run)

    def _level(self, name: str, out: np.ndarray, row: int, part: int | None) -> Level:
        sides = self.sides(name)
        if out.shape[-1] not in sides:
            stored = ", ".join(map(str, sides))
            raise UserError(
                f"{self._path}: the record of {self._what} is stored at {stored} px, not at {out.shape[-1]}"
            )
        level = self._arrays[name][sides.index(out.shape[-1])]
        assert out.flags.c_contiguous and row >= 0
        channels = level.shape[:-2] if part is None else level.shape[1:-2]
        same_kind = (level.dtype, channels) == (out.dtype.str, out.shape[:-2])
        if not same_kind or row + out.shape[-2] > level.shape[-2] or (part or 0) >= level.shape[0]:
            held = f"{level.dtype} {level.shape}"
            raise UserError(f"{self._path}: the record of {self._what} holds {held}, another kind; {REPACK}")
        return level

    @property
    def _path(self) -> Path:
        return self._reader.folder / self._place.shard

    def _altered(self, where: str, at: int) -> UserError:
        return UserError(
            f"{self._path}: the record of {self._what} was altered ({where}, at byte {at}: its checksum is wrong); "
            f"{REPACK}"
        )


class ShardReader:
    """Reads records of a folder of shards, in any order.

    Only the shards asked for are opened, and only the bytes asked for are read: the folder may lie on a mounted
    file system and be larger than the local disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()

    def __del__(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def announce(self, shard: str, start: int, nbytes: int) -> None:
        """Let the system fetch bytes of a shard ahead of `fill`. Where it takes no advice, nothing comes of it."""
        if nbytes > ANNOUNCED_BYTES or not hasattr(os, "posix_fadvise"):
            return
        with suppress(OSError):
            descriptor = self._descriptor(shard)
            for at in range(start, start + nbytes, ANNOUNCED_STEP):
                length = min(ANNOUNCED_STEP, start + nbytes - at)
                os.posix_fadvise(descriptor, at, length, os.POSIX_FADV_WILLNEED)

    def fill(self, out: np.ndarray, place: Place, start: int, what: str) -> None:
        """Fill `out`, in C order, with bytes of a shard from `start`.

        Args:
            place, what: of the record that they belong to, for messages.

        Raises:
            UserError: the shard is missing, cut or can't be read.
        """
        try:
            descriptor, done = self._descriptor(place.shard), 0
            while done < out.nbytes:
                rest = out.data.cast("B")[done:] if done else out.data
                read = os.preadv(descriptor, [rest], start + done)
                if not read:
                    break
                done += read
        except OSError as error:
            raise UserError(f"{self.folder / place.shard}: the record of {what}: {error.strerror}") from error
        if done < out.nbytes:
            raise UserError(
                f"{self.folder / place.shard}: truncated: {start + done} bytes, but the record of {what} "
                f"ends at byte {place.offset + place.nbytes}; {REPACK}"
            )

    def _descriptor(self, shard: str) -> int:
        descriptor = self._open.get(shard)
        if descriptor is None:
            descriptor = self._open[shard] = os.open(self.folder / shard, os.O_RDONLY | os.O_NONBLOCK)
            if len(self._open) > OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return descriptor


def used_bytes(places: Iterable[Place]) -> dict[str, int]:
    """Return, for each shard, its bytes up to the end of its last record."""
    ends: dict[str, int] = {}
    for place in places:
        ends[place.shard] = max(ends.get(place.shard, 0), place.offset + place.nbytes)
    return ends


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
