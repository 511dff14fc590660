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
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from neuropbr_dist.data.files.judge import judge
from neuropbr_dist.data.files.layout import Index, Sample, index_set
from neuropbr_dist.data.files.verify import Picture, Report, Stamp, picture_at, pictures_of, stamp, summarise
from neuropbr_dist.data.packed.index import HEAD, JOURNAL, SHARDS, PackedIndex, read_head, write_index
from neuropbr_dist.data.packed.progress import Done, Progress
from neuropbr_dist.data.packed.shards import Place, ShardWriter, used_bytes
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import remove_leftovers
from neuropbr_dist.processes import in_parallel

SHARD_BYTES = 1 << 30
OWN_FILES = {JOURNAL, SHARDS, "run.lock"}
_HOLDS_ANOTHER = "{}: holds a packed set of other pictures; delete that folder, or name another"

ArrayName = Literal["views", "maps"]
Columns = Callable[[Sequence[Sample]], Mapping[str, np.ndarray]]


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
    input_dir: Path | str,
    output_dir: Path | str,
    dest: Path | str,
    metadata_path: Path | str | None = None,
    *,
    workers: int = 1,
    skip_faulty: bool = False,
    columns: Columns = lambda _: {},
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> Report:
    """Pack all clean and dirty entries; goes on with what an interrupted call has left in `dest`.

    The caller sees to it that nobody else packs into `dest` at the same time (`RunLock`).

    Args:
        skip_faulty: pack what has no fault. Otherwise nothing becomes visible before all is sound.
        columns: called with the samples that are packed, returns the index's columns of them (`index.COLUMNS`).
            A set that is packed already gets the new ones, and keeps its pictures.

    Returns:
        What `verify` would report. The set is packed if it is clean, or with `skip_faulty`.

    Raises:
        UserError: as `verify`; `dest` holds something else; it can't be written to (disk full:
            what is packed so far stays, and the same command goes on).
    """
    dest = Path(dest)
    index = index_set(input_dir, output_dir, metadata_path, curriculum=1)
    tasks = _tasks(index)
    claim(dest)
    if (dest / HEAD).exists():
        read_head(dest)  # of another format version?
    origin = {"input_dir": str(Path(input_dir).resolve()), "output_dir": str(Path(output_dir).resolve())}
    noted = Progress(dest, origin)
    done = noted.done({task.name: task.stamps for task in tasks})
    if not (dest / HEAD).exists():
        _drop_unused(dest, done.values())
        _work(tasks, done, noted, workers, progress, shard_bytes)
    elif len(done) < len(tasks):
        PackedIndex(dest).check_shards()  # a lost one is no other picture
        raise UserError(_HOLDS_ANOTHER.format(dest))
    findings = {
        picture: finding
        for task in tasks
        for picture, finding in zip(task.pictures, done[task.name].findings, strict=True)
    }
    report = summarise(index, findings)
    if report.clean or skip_faulty:
        _finish(dest, index, report, done, columns)
    return report


def _tasks(index: Index) -> list[Task]:
    """Every picture once, also those of incomplete samples."""
    tasks: dict[str, Task] = {}
    for sample in index.samples:
        views, maps = (tuple(map(picture_at, paths)) for paths in (sample.views, sample.maps))
        tasks[_views_of(sample)] = Task(_views_of(sample), views, "views")
        tasks.setdefault(_maps_of(sample), Task(_maps_of(sample), maps, "maps"))
    packed = {picture for task in tasks.values() for picture in task.pictures}
    for picture in pictures_of(index):
        if picture not in packed:
            tasks[str(picture[0])] = Task(str(picture[0]), (picture,), None)
    return list(tasks.values())


def _views_of(sample: Sample) -> str:
    return f"views:{sample.key}"


def _maps_of(sample: Sample) -> str:
    return f"maps:{sample.material}"


def claim(dest: Path) -> None:
    """Make `dest`, unless it holds somebody's files: nothing is written among them.

    Raises:
        UserError: it does, or can't be made.
    """
    names = {path.name for path in dest.iterdir()} if dest.is_dir() else set()
    if (names - OWN_FILES and not names & {JOURNAL, HEAD}) or (dest.exists() and not dest.is_dir()):
        raise UserError(f"{dest}: not empty, and no packed set was begun in it; name a new or empty folder")
    try:
        (dest / SHARDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{dest}: {error.strerror}") from error


def _work(
    tasks: list[Task],
    done: dict[str, Done],
    noted: Progress,
    workers: int,
    progress: bool,
    shard_bytes: int,
) -> None:
    """Do what is not done yet, and note it."""
    folder = noted.dest / SHARDS
    rest = [task for task in tasks if task.name not in done]
    start = (folder, _next_attempt(folder), shard_bytes)
    with tqdm(total=len(tasks), initial=len(tasks) - len(rest), unit="record", disable=not progress) as bar:
        for task, (stamps, result) in in_parallel(_pack, rest, workers, _open_writer, start):
            done[task.name] = result
            noted.note(task.name, stamps, result)
            bar.update()


_writer: ShardWriter | None = None


def _open_writer(folder: Path, attempt: int, shard_bytes: int) -> None:
    # A name that no other process has: those of a killed call may still be writing.
    global _writer
    _writer = ShardWriter(folder, f"{attempt:04d}-{os.getpid()}", shard_bytes)


def _pack(task: Task) -> tuple[list[Stamp], Done]:
    """In a working process: decode, judge, write. The stamps are from before the reading."""
    stamps = task.stamps
    findings, pictures = [], []
    for picture in task.pictures:
        finding, pixels = judge(*picture)
        findings.append(finding)
        if pixels is not None and not finding.fault:
            pictures.append(pixels)
    sound = len(pictures) == len(task.pictures) and len({picture.shape[1:] for picture in pictures}) == 1
    if task.array is None or not sound:
        return stamps, Done(findings, None)
    assert _writer is not None
    array = np.stack(pictures) if task.array == "views" else np.concatenate(pictures)
    return stamps, Done(findings, _writer.append({task.array: array}))


def _next_attempt(folder: Path) -> int:
    numbers = [int(match[1]) for path in folder.iterdir() if (match := re.match(r"(\d+)-", path.name))]
    return max(numbers, default=-1) + 1


def _drop_unused(dest: Path, done: Iterable[Done]) -> None:
    """Give back what an interrupted call wrote and never noted."""
    used = used_bytes(result.place for result in done if result.place)
    try:
        for path in (dest / SHARDS).glob("*.bin"):
            if path.name not in used:
                path.unlink()
            elif path.stat().st_size > used[path.name]:
                os.truncate(path, used[path.name])
        remove_leftovers(dest)
    except OSError as error:
        raise UserError(f"{error.filename or dest}: {error.strerror}") from error


def _finish(dest: Path, index: Index, report: Report, done: dict[str, Done], columns: Columns) -> None:
    """Leave out faulty samples and make the rest visible."""
    faulty = set(report.faulty_samples)
    samples = [sample for sample in index.samples if sample.name not in faulty]
    if not samples:
        raise UserError(f"{dest}: every sample has a fault; nothing was packed")
    origin = _origin(samples, done)
    if (dest / HEAD).exists() and read_head(dest)["origin"] != origin:
        raise UserError(_HOLDS_ANOTHER.format(dest))
    views = [done[_views_of(sample)] for sample in samples]
    maps = {sample.material: done[_maps_of(sample)] for sample in samples}
    write_index(
        dest,
        [(sample.name, sample.source, sample.material) for sample in samples],
        [_place(result) for result in views],
        {material: _place(result) for material, result in sorted(maps.items())},
        columns(samples),
        sides=[finding.side for result in (*views, *maps.values()) for finding in result.findings],
        origin=origin,
    )
    _drop_unused(dest, [*views, *maps.values()])


def _place(result: Done) -> Place:
    assert result.place is not None  # else a picture has a fault, and so its samples
    return result.place


def _origin(samples: list[Sample], done: dict[str, Done]) -> str:
    """Hash of the decoded pixels and the names they go by."""
    digest = hashlib.sha256()
    for sample in samples:
        views, maps = done[_views_of(sample)], done[_maps_of(sample)]
        contents = [finding.content for finding in (*views.findings, *maps.findings)]
        digest.update(json.dumps([sample.name, sample.source, sample.material, contents]).encode())
    return digest.hexdigest()
