"""Packed sets and the PNG files they were made from, held against each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from neuropbr_dist.data.files.layout import scan
from neuropbr_dist.data.packed.source import PackedSource
from neuropbr_dist.data.sources import FileSource


def files(pictures: tuple[Path, Path], curriculum: int = 1, size: int | None = None) -> FileSource:
    """The PNG files as a source, resized to `size`."""
    entries = scan(*pictures, None, curriculum)
    with Image.open(entries[0].views[0]) as picture:
        return FileSource(entries, size or picture.width, resize=size is not None, cache_mib=1)


def assert_same_as_files(
    dest: Path, pictures: tuple[Path, Path], curriculum: int = 1, size: int | None = None
) -> None:
    """Every sample has the same name, place and bits in both, and every shard is there."""
    ours, theirs = PackedSource(dest, curriculum, size), files(pictures, curriculum, size)
    ours.check_shards()
    assert ours.size == theirs.size
    assert [(e.key, e.name, e.renders, e.material) for e in ours.entries] == [
        (e.key, e.name, e.renders, e.material) for e in theirs.entries
    ]
    for entry, sample in zip(ours.entries, theirs.entries, strict=True):
        for mine, other in zip(ours.load(entry), theirs.load(sample), strict=True):
            np.testing.assert_array_equal(mine, other)


def bytes_read(call: Callable[[], object]) -> int:
    """Bytes that this process reads from files in `call`."""

    def count() -> int:
        with open("/proc/self/io") as file:
            return int(file.readline().split()[1])

    looking = -count() + count()
    before = count()
    call()
    return count() - before - looking


def flip(path: Path, at: int) -> None:
    """Flip a bit of the byte `at`."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
