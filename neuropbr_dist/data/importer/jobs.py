"""A material that is to be imported, wherever it comes from, and what has become of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from neuropbr_dist.data.importer.assign import PICTURES, Take
from neuropbr_dist.data.importer.pictures import decode_picture, read_picture, read_size
from neuropbr_dist.materials.channels import MapName


class Files(Protocol):
    """Reader of a material's pictures."""

    def read(self, file: str) -> np.ndarray:
        """Return a picture's values; see `pictures.read_picture`."""

    def best_first(self, take: Take) -> Take:
        """Return a take whose first file is the one to read."""


@dataclass(frozen=True)
class Folder:
    """Files below a folder."""

    root: Path

    def read(self, file: str) -> np.ndarray:
        """Return a picture's values."""
        return read_picture(self.root / file)

    def best_first(self, take: Take) -> Take:
        """Return a take whose first file is the largest of several; of equals, the one with most bits; then by format."""
        if len(take.files) == 1:
            return take

        def quality(file: str) -> tuple[int, int, int]:
            size = read_size(self.root / file)
            return min(size.width, size.height), size.bits, -PICTURES.index(Path(file).suffix.lower())

        files = sorted(take.files, key=quality, reverse=True)
        return Take(tuple(files), take.channel, take.inverted, take.convention)


@dataclass(frozen=True)
class Encoded:
    """Files that are in memory."""

    name: str
    """Name of the whole, for messages."""
    contents: Mapping[str, bytes] = field(repr=False)

    def read(self, file: str) -> np.ndarray:
        """Return a picture's values."""
        return decode_picture(self.contents[file], f"{self.name} {file}")

    def best_first(self, take: Take) -> Take:
        """Return the take as it is: there is one file for a map."""
        return take


@dataclass(frozen=True)
class Job:
    """A material to import."""

    name: str
    """Name of its folder in DEST."""
    files: Files
    takes: Mapping[MapName, Take] = field(default_factory=dict)
    specular: Take | None = None
    reason: str = ""
    """Reason why it can't be imported, '' if it can."""
    stamps: tuple[tuple[Any, ...], ...] = ()
    """Stamps of all that it is made from, and how: where they are the same, an earlier call's work holds."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Origin and rights: licence, source, …; kept beside the set."""
    validation: bool | None = None
    """Whether it is on the validation side of its own set's split; None: that has none."""

    def key(self, options: object) -> str:
        """Return a hash of what the result depends on."""
        told = [
            self.stamps,
            {name: str(take) for name, take in self.takes.items()},
            str(options),
            self.reason,
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]


class Library(Protocol):
    """Materials of one origin."""

    origin: str
    """Name of the library: materials of two libraries don't take each other's places."""
    total: int | None
    """Number of materials, if it is known before they are read."""
    strays: list[str]
    """Pictures that aren't understood, or that no material needs."""

    def jobs(self, skip: Callable[[Job], bool]) -> Iterator[Job]:
        """Yield the materials, but for those for which `skip` is true: their pictures aren't loaded."""


def folder_name(text: str) -> str:
    """Return a name that every file system takes: letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._-") or "material"


def unique(name: str, parents: list[str], taken: set[str]) -> str:
    """Return the name with as many of its parents before it as it takes to be another than `taken`, in any case."""
    for parent in reversed(parents):
        if name.lower() not in taken:
            break
        name = f"{folder_name(parent)}_{name}"
    number, first = 2, name
    while name.lower() in taken:
        name, number = f"{first}_{number}", number + 1
    taken.add(name.lower())
    return name
