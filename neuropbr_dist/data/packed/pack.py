"""PNG files -> a packed set, in parallel, in one pass that also verifies them.

Whatever ends it at whatever byte, the same command goes on (`progress.py`). The set becomes visible at the very end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from neuropbr_dist.data.cameras import NOT_KNOWN
from neuropbr_dist.data.files.entries import Sample
from neuropbr_dist.data.files.layout import Index, subfolders
from neuropbr_dist.data.files.picture_check import inspect_picture
from neuropbr_dist.data.files.verify import (
    Picture,
    Stamp,
    Verification,
    index_all,
    picture_at,
    pictures_of,
    stamp,
    summarise,
)
from neuropbr_dist.data.packed.index import JOURNAL, METADATA, SHARDS, PackedIndex, read_metadata, write_index
from neuropbr_dist.data.packed.progress import Done, Progress
from neuropbr_dist.data.packed.shards import REPACK, Place, ShardWriter, used_bytes
from neuropbr_dist.data.split import SPLIT_FILE, read_split
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import check_links, realpath, remove_leftovers, write_json, writing
from neuropbr_dist.materials.conventions import Conventions
from neuropbr_dist.processes import in_parallel

SHARD_BYTES = 1 << 30
OWN_FILES = {JOURNAL, SHARDS, "run.lock"}
_HOLDS_ANOTHER = "{}: holds a packed set of other pictures; delete that folder, or name another"

OURS = Conventions()
ArrayName = Literal["views", "maps"]
Columns = Callable[[Sequence[Sample]], Mapping[str, np.ndarray]]


def cameras_of(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Return the index's column of cameras, float32 (n, 3, 14); none where nobody has one."""
    rows = [sample.cameras for sample in samples]
    if all(row is None for row in rows):
        return {}
    return {"cameras": np.stack([NOT_KNOWN if row is None else row for row in rows])}


@dataclass(frozen=True)
class Task:
    """Pictures that become one record."""

    name: str
    """Such as `views:clean/sample_0000` or `maps:wood`; a path where a picture is only judged."""
    pictures: tuple[Picture, ...]
    array: ArrayName | None
    """The array that they become; None: they are of an incomplete sample, and only judged."""

    @property
    def stamps(self) -> list[Stamp]:
        return [stamp(*picture) for picture in self.pictures]


def pack(
    input_dir: Path | str | None,
    output_dir: Path | str,
    dest: Path | str,
    metadata_path: Path | str | None = None,
    *,
    workers: int = 1,
    skip_faulty: bool = False,
    conventions: Conventions = OURS,
    columns: Columns = cameras_of,
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> Verification:
    """Pack all clean and dirty entries; goes on with what an interrupted call has left in `dest`.

    The caller sees to it that nobody else packs into `dest` at the same time (`RunLock`).

    Args:
        input_dir: None: a folder of materials alone, which may differ in size.
        conventions: of pictures that aren't by this package's; they are packed converted.
        skip_faulty: pack what has no fault. Otherwise nothing becomes visible before all is sound.
        columns: called with the samples that are packed, returns the index's columns of them (`index.COLUMNS`).
            A set that is packed already gets the new ones, and keeps its pictures.

    Returns:
        What `verify` would find. The set is packed if it is clean, or with `skip_faulty`.

    Raises:
        UserError: as `verify`; `dest` holds something else; it can't be written to (disk full:
            what is packed so far stays, and the same command goes on).
    """
    dest = Path(dest)
    index = index_all(input_dir, output_dir, metadata_path)
    tasks = _tasks(index)
    prepare_folder(dest)
    if (dest / METADATA).exists():
        read_metadata(dest)  # of another format version?
    origin = {
        "input_dir": None if input_dir is None else str(realpath(Path(input_dir))),
        "output_dir": str(realpath(Path(output_dir))),
    }
    if conventions != OURS:
        origin["conventions"] = str(conventions)
    validation = read_split(Path(output_dir), subfolders(Path(output_dir)))
    noted = Progress(dest, origin)
    done = noted.done({task.name: task.stamps for task in tasks})
    if not (dest / METADATA).exists():
        _drop_unused(dest, done.values())
        _work(tasks, done, noted, conventions, workers, progress, shard_bytes)
    elif len(done) < len(tasks):
        PackedIndex(dest).check_shards()  # a lost one is no other picture
        raise UserError(_HOLDS_ANOTHER.format(dest))
    checks = {
        picture: check
        for task in tasks
        for picture, check in zip(task.pictures, done[task.name].checks, strict=True)
    }
    verification = summarise(index, checks)
    if verification.clean or skip_faulty:
        packed = _finish(dest, index, verification, done, columns, conventions)
        _write_split(dest, validation, packed)
    return verification


def _tasks(index: Index) -> list[Task]:
    """Return every picture once, also those of incomplete samples."""
    tasks: dict[str, Task] = {}
    for sample in index.samples:
        views, maps = (tuple(map(picture_at, paths)) for paths in (sample.views, sample.maps))
        tasks[_views_of(sample)] = Task(_views_of(sample), views, "views")
        name = _maps_of(sample.material)
        tasks.setdefault(name, Task(name, maps, "maps"))
    for material, paths in index.materials.items():
        tasks[_maps_of(material)] = Task(_maps_of(material), tuple(map(picture_at, paths)), "maps")
    packed = {picture for task in tasks.values() for picture in task.pictures}
    for picture in pictures_of(index):
        if picture not in packed:
            tasks[str(picture[0])] = Task(str(picture[0]), (picture,), None)
    return list(tasks.values())


def _views_of(sample: Sample) -> str:
    return f"views:{sample.key}"


def _maps_of(material: str) -> str:
    return f"maps:{material}"


def prepare_folder(dest: Path) -> None:
    """Make `dest`, unless it holds somebody's files: nothing is written among them.

    Raises:
        UserError: it does, or can't be made.
    """
    names = {path.name for path in dest.iterdir()} if dest.is_dir() else set()
    if (names - OWN_FILES and not names & {JOURNAL, METADATA}) or (dest.exists() and not dest.is_dir()):
        raise UserError(f"{dest}: not empty, and no packed set was begun in it; name a new or empty folder")
    check_links(dest)
    with writing(dest):
        (dest / SHARDS).mkdir(parents=True, exist_ok=True)


def _work(
    tasks: list[Task],
    done: dict[str, Done],
    noted: Progress,
    conventions: Conventions,
    workers: int,
    progress: bool,
    shard_bytes: int,
) -> None:
    """Do what is not done yet, and note it."""
    folder = noted.dest / SHARDS
    rest = [task for task in tasks if task.name not in done]
    work = partial(_pack, conventions=conventions)
    start = (folder, _next_attempt(folder), shard_bytes)
    with tqdm(total=len(tasks), initial=len(tasks) - len(rest), unit="record", disable=not progress) as bar:
        for task, (stamps, result) in in_parallel(work, rest, workers, _open_writer, start):
            done[task.name] = result
            noted.note(task.name, stamps, result)
            bar.update()


_writer: ShardWriter | None = None


def _open_writer(folder: Path, attempt: int, shard_bytes: int) -> None:
    # A name that no other process has: those of a killed call may still be writing.
    global _writer
    _writer = ShardWriter(folder, f"{attempt:04d}-{os.getpid()}", shard_bytes)


def _pack(task: Task, conventions: Conventions) -> tuple[list[Stamp], Done]:
    """Decode, inspect and write, in a working process. The stamps are from before the reading."""
    stamps = task.stamps
    checks, pictures = [], []
    for picture in task.pictures:
        check, pixels = inspect_picture(*picture)
        checks.append(check)
        if pixels is not None and not check.fault:
            pictures.append(conventions.converted(picture[1], pixels))
    sound = len(pictures) == len(task.pictures) and len({picture.shape[1:] for picture in pictures}) == 1
    if task.array is None or not sound:
        return stamps, Done(checks, None)
    assert _writer is not None
    array = np.stack(pictures) if task.array == "views" else np.concatenate(pictures)
    return stamps, Done(checks, _writer.append({task.array: array}))


def _next_attempt(folder: Path) -> int:
    numbers = [int(match[1]) for path in folder.iterdir() if (match := re.match(r"(\d+)-", path.name))]
    return max(numbers, default=-1) + 1


def _drop_unused(dest: Path, done: Iterable[Done]) -> None:
    """Give back what an interrupted call wrote and never noted."""
    used = used_bytes(result.place for result in done if result.place)
    with writing(dest):
        for path in (dest / SHARDS).glob("*.bin"):
            if path.name not in used:
                path.unlink()
            elif path.stat().st_size > used[path.name]:
                os.truncate(path, used[path.name])
        remove_leftovers(dest)


def _finish(
    dest: Path,
    index: Index,
    verification: Verification,
    done: dict[str, Done],
    columns: Columns,
    conventions: Conventions,
) -> frozenset[str]:
    """Leave out faulty samples and make the rest visible; return the materials that are packed."""
    faulty = set(verification.faulty_samples)
    samples = [sample for sample in index.samples if sample.name not in faulty]
    materials = {sample.material for sample in samples} | (index.materials.keys() - faulty)
    if not materials:
        raise UserError(f"{dest}: every {verification.what} has a fault; nothing was packed")
    views = [done[_views_of(sample)] for sample in samples]
    maps = {material: done[_maps_of(material)] for material in sorted(materials)}
    origin = _origin(samples, views, maps, conventions)
    if (dest / METADATA).exists() and read_metadata(dest)["origin"] != origin:
        raise UserError(_HOLDS_ANOTHER.format(dest))
    write_index(
        dest,
        [(sample.name, sample.renders, sample.material) for sample in samples],
        [_place(result) for result in views],
        {material: _place(result) for material, result in maps.items()},
        columns(samples),
        sides=[check.side for result in (*views, *maps.values()) for check in result.checks],
        origin=origin,
    )
    _drop_unused(dest, [*views, *maps.values()])
    return frozenset(maps)


def _write_split(dest: Path, validation: frozenset[str] | None, packed: frozenset[str]) -> None:
    """Write the set's own split beside it, as far as its materials are packed."""
    with writing(dest / SPLIT_FILE):
        if validation is None:
            (dest / SPLIT_FILE).unlink(missing_ok=True)
        else:
            write_json(dest / SPLIT_FILE, {"validation": sorted(validation & packed)}, indent=1)


def _place(result: Done) -> Place:
    if result.place is None:  # else a picture has a fault, and so its samples
        raise UserError(f"{JOURNAL}: names no record of sound pictures; {REPACK}")
    return result.place


def _origin(
    samples: list[Sample], views: Sequence[Done], maps: Mapping[str, Done], conventions: Conventions
) -> str:
    """Return a hash of the decoded pixels, the names they go by, and how they were converted."""
    digest = hashlib.sha256(str(conventions).encode())
    for sample, pictures in zip(samples, views, strict=True):
        contents = [check.content for check in (*pictures.checks, *maps[sample.material].checks)]
        digest.update(json.dumps([sample.name, sample.renders, sample.material, contents]).encode())
    for material in () if samples else maps:
        digest.update(json.dumps([material, [check.content for check in maps[material].checks]]).encode())
    return digest.hexdigest()
