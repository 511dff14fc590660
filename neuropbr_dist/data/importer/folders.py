"""Materials in a folder of any depth."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from neuropbr_dist.data.importer.assign import ARCHIVES, GENERIC, NOT_READ, PICTURES, Found, find_materials
from neuropbr_dist.data.importer.jobs import Folder, Job, folder_name, unique
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import realpath

_PROGRAM_SUFFIX = re.compile(r"\.(blend|gltf|fbx|usd[acz]?|mtlx|max|c4d)$", re.IGNORECASE)


class FolderLibrary:
    """The materials below a folder, by the names of their files.

    Args:
        src: the folder.
        leave_out: a folder below it that isn't looked into: the one that is written.

    Raises:
        UserError: no such folder, or no pictures in it.
    """

    def __init__(self, src: Path, leave_out: Path) -> None:
        self.src, self.origin = src, str(realpath(src))
        paths = _files_below(src, leave_out)
        _require_pictures(src, paths)
        names = find_materials(paths)
        self.strays = names.strays
        self.materials = _named(names.materials, src)
        self.total: int | None = len(self.materials)

    def jobs(self, skip: Callable[[Job], bool]) -> Iterator[Job]:
        """Yield the materials by name."""
        for name, found in self.materials:
            told = [*map(str, found.takes.values()), found.reason]
            stamps = (*(_stamp(self.src, file) for file in found.files), ("taken", *told))
            job = Job(
                name, Folder(self.src), found.takes, found.specular, found.reason, stamps,
                about={"folder": str(self.src / found.folder)},
            )  # fmt: skip
            if not skip(job):
                yield job


def _files_below(src: Path, leave_out: Path) -> list[str]:
    """Return relative paths of all files, hidden ones left out; links are followed, each folder is seen once."""
    seen: set[str] = {os.path.realpath(leave_out)}
    found = []
    for folder, folders, files in os.walk(src, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if real in seen:
                folders.remove(name)
            seen.add(real)
        below = PurePosixPath(Path(folder).relative_to(src).as_posix())
        found += [str(below / name) for name in files if not name.startswith(".")]
    return found


def _require_pictures(src: Path, paths: list[str]) -> None:
    if not src.is_dir():
        raise UserError(f"{src}: {'a file, not a folder' if src.exists() else 'no such folder'}")
    suffixes = Counter(PurePosixPath(path).suffix.lower() for path in paths)
    if any(suffixes[suffix] for suffix in PICTURES):
        return
    others = {suffix: count for suffix, count in suffixes.items() if suffix in ARCHIVES + NOT_READ}
    held = ", ".join(f"{count} {suffix}" for suffix, count in others.items())
    hint = f"; it holds {held} files, which aren't read: unpack or convert them first" if others else ""
    raise UserError(f"{src}: no pictures in it ({', '.join(PICTURES)} are read){hint}")


def _named(materials: list[Found], src: Path) -> list[tuple[str, Found]]:
    """Return materials with the names of their folders in DEST: the folder's, where it holds several also their own."""
    held = Counter(found.folder for found in materials)
    taken: set[str] = set()
    named = []
    for found in sorted(materials, key=lambda found: (found.folder, found.name)):
        parts = [
            _PROGRAM_SUFFIX.sub("", part) for part in (realpath(src).name, *PurePosixPath(found.folder).parts)
        ]
        folder, own = folder_name(parts[-1]), folder_name(found.name) if found.name else ""
        if held[found.folder] == 1 and not (own and GENERIC.fullmatch(folder)):
            name = folder
        elif not own or _key(folder) in _key(own):
            name = own or folder
        else:
            name = f"{folder}_{own}"
        named.append((unique(name, parts[:-1], taken), found))
    return sorted(named, key=lambda pair: pair[0])


def _key(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _stamp(src: Path, file: str) -> tuple[str, int, int]:
    try:
        status = (src / file).stat()
    except OSError:
        return file, -1, -1
    return file, status.st_size, status.st_mtime_ns
