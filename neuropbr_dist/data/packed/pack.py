"""PNG files -> a packed set, in parallel, in one pass that also verifies them.

Whatever ends it at whatever byte, the same command goes on: a record counts once the journal
names it, and the journal names it once it is on disk. The set becomes visible at the very end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from neuropbr_dist.data.files.judge import Finding, is_finding, judge
from neuropbr_dist.data.files.layout import Index, Sample, index_set
from neuropbr_dist.data.files.verify import Picture, Report, Stamp, picture_at, pictures_of, stamp, summarise
from neuropbr_dist.data.packed.journal import Journal
from neuropbr_dist.data.packed.shards import Compression, Place, ShardWriter, used_bytes
from neuropbr_dist.data.packed.source import (
    HEAD,
    JOURNAL,
    SHARDS,
    VERSION,
    PackedSource,
    read_head,
    write_index,
)
from neuropbr_dist.errors import UserError
from neuropbr_dist.processes import in_parallel

SHARD_BYTES = 1 << 30
OWN_FILES = {JOURNAL, SHARDS, "run.lock"}
_HOLDS_ANOTHER = "{}: holds a packed set of other pictures; delete that folder, or name another"


@dataclass(frozen=True)
class Task:
    """Pictures that become one record, or (`kept` False: parts of an incomplete sample) are only judged."""

    name: str
    """`views:clean/sample_0000`, `maps:wood`; a path for what is only judged."""
    pictures: tuple[Picture, ...]
    kept: bool = True

    @property
    def stamps(self) -> list[Stamp]:
        return [stamp(*picture) for picture in self.pictures]


@dataclass(frozen=True)
class Done:
    """What became of a task. No place: a picture has a fault."""

    findings: list[Finding]
    place: Place | None


def pack(
    input_dir: Path | str,
    output_dir: Path | str,
    dest: Path | str,
    metadata_path: Path | str | None = None,
    *,
    workers: int = 1,
    compression: Compression = "none",
    skip_faulty: bool = False,
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> Report:
    """Pack all clean and dirty entries; goes on with what an interrupted call has left in `dest`.

    The caller sees to it that nobody else packs into `dest` at the same time (`RunLock`).

    Args:
        skip_faulty: pack what has no fault. Otherwise nothing becomes visible before all is sound.

    Returns:
        What `verify` would report. The set is packed if it is clean, or with `skip_faulty`.

    Raises:
        UserError: as `verify`; `dest` holds something else; it can't be written to (disk full:
            what is packed so far stays, and the same command goes on).
    """
    dest = Path(dest)
    index = index_set(input_dir, output_dir, metadata_path, curriculum=1)
    tasks = _tasks(index)
    origin = {"input_dir": str(Path(input_dir).resolve()), "output_dir": str(Path(output_dir).resolve())}
    begun = {"version": VERSION, "compression": compression, **origin}
    claim(dest)
    with Journal(dest / JOURNAL, "the journal of a packed set") as journal:
        done = _read_journal(journal, tasks, begun, dest)
        if not (dest / HEAD).exists():
            _drop_unused(dest / SHARDS, done.values())
            _work(tasks, done, journal, dest / SHARDS, compression, workers, progress, shard_bytes)
        elif len(done) < len(tasks):
            PackedSource(dest, curriculum=1).check_shards()  # a lost one is no other picture
            raise UserError(_HOLDS_ANOTHER.format(dest))
        findings = {
            picture: finding
            for task in tasks
            for picture, finding in zip(task.pictures, done[task.name].findings, strict=True)
        }
        report = summarise(index, findings)
        if report.clean or skip_faulty:
            _finish(dest, index, report, done, compression)
    return report


def _tasks(index: Index) -> list[Task]:
    """Every picture once, also those of incomplete samples."""
    tasks: dict[str, Task] = {}
    for sample in index.samples:
        for name, paths in ((_views_of(sample), sample.views), (_maps_of(sample.material), sample.maps)):
            tasks.setdefault(name, Task(name, tuple(picture_at(path) for path in paths)))
    packed = {picture for task in tasks.values() for picture in task.pictures}
    for picture in pictures_of(index):
        if picture not in packed:
            tasks[str(picture[0])] = Task(str(picture[0]), (picture,), kept=False)
    return list(tasks.values())


def _views_of(sample: Sample) -> str:
    return f"views:{sample.key}"


def _maps_of(material: str) -> str:
    return f"maps:{material}"


def claim(dest: Path) -> None:
    """Make `dest`, unless it holds somebody's files: nothing is written among them.

    Raises:
        UserError: it does, or can't be made.
    """
    others = {path.name for path in dest.iterdir()} - OWN_FILES if dest.is_dir() else set()
    begun = (dest / JOURNAL).exists() or (dest / HEAD).exists()
    if (others and not begun) or (dest.exists() and not dest.is_dir()):
        raise UserError(f"{dest}: not empty, and no packed set was begun in it; name a new or empty folder")
    try:
        (dest / SHARDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{dest}: {error.strerror}") from error


def _read_journal(journal: Journal, tasks: list[Task], begun: dict[str, Any], dest: Path) -> dict[str, Done]:
    """What earlier calls have done to pictures that are still the same."""
    lines = journal.read(_is_line)
    if not lines:
        if (dest / HEAD).exists():
            raise UserError(
                f"{dest}: holds a packed set without its {JOURNAL}, so nobody knows from which pictures; "
                "it can be trained on; to pack, delete that folder or name another"
            )
        journal.append(begun)
        return {}
    if lines[0] != begun:
        changed = [f"{name} = {value}" for name, value in lines[0].items() if begun.get(name) != value]
        raise UserError(
            f"{dest}: packing was begun there with {', '.join(changed)}; "
            "give the same, or delete that folder, or name another"
        )
    wanted = {task.name: task.stamps for task in tasks}
    sizes = {path.name: path.stat().st_size for path in (dest / SHARDS).iterdir()}
    done = {}
    for line in lines[1:]:
        place = Place(*line["place"]) if line["place"] else None
        # After a power cut the journal may name what the disk never got.
        lost = place is not None and sizes.get(place.shard, 0) < place.offset + place.nbytes
        if not lost and wanted.get(line["task"]) == [tuple(one) for one in line["stamps"]]:
            done[line["task"]] = Done([Finding(**finding) for finding in line["findings"]], place)
    return done


def _is_line(line: Any) -> bool:
    if not isinstance(line, dict):
        return False
    if "version" in line:
        return True
    return line.keys() == {"task", "stamps", "findings", "place"} and all(map(is_finding, line["findings"]))


def _work(
    tasks: list[Task],
    done: dict[str, Done],
    journal: Journal,
    folder: Path,
    compression: Compression,
    workers: int,
    progress: bool,
    shard_bytes: int,
) -> None:
    """Do what is not done yet, and note it."""
    rest = [task for task in tasks if task.name not in done]
    start = (folder, _next_attempt(folder), compression, shard_bytes)
    with tqdm(total=len(tasks), initial=len(tasks) - len(rest), unit="record", disable=not progress) as bar:
        for task, (stamps, result) in in_parallel(_pack, rest, workers, _open_writer, start):
            done[task.name] = result
            findings = [vars(finding) for finding in result.findings]
            journal.append({"task": task.name, "stamps": stamps, "findings": findings, "place": result.place})
            bar.update()


_writer: ShardWriter | None = None


def _open_writer(folder: Path, attempt: int, compression: Compression, shard_bytes: int) -> None:
    # A name that no other process has: those of a killed call may still be writing.
    global _writer
    _writer = ShardWriter(folder, f"{attempt:04d}-{os.getpid()}", compression, shard_bytes)


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
    if not (task.kept and sound):
        return stamps, Done(findings, None)
    assert _writer is not None
    return stamps, Done(findings, _writer.append(np.concatenate(pictures)))


def _next_attempt(folder: Path) -> int:
    numbers = [int(match[1]) for path in folder.iterdir() if (match := re.match(r"(\d+)-", path.name))]
    return max(numbers, default=-1) + 1


def _drop_unused(folder: Path, done: Iterable[Done]) -> None:
    """Give back what an interrupted call wrote and never noted."""
    used = used_bytes([result.place for result in done if result.place])
    for path in folder.glob("*.bin"):
        if path.name not in used:
            path.unlink()
        elif path.stat().st_size > used[path.name]:
            os.truncate(path, used[path.name])


def _finish(
    dest: Path, index: Index, report: Report, done: dict[str, Done], compression: Compression
) -> None:
    """Leave out faulty samples and make the rest visible."""
    faulty = set(report.faulty_samples)
    samples = [sample for sample in index.samples if sample.name not in faulty]
    if not samples:
        raise UserError(f"{dest}: every sample has a fault; nothing was packed")
    origin = _origin(samples, done)
    if (dest / HEAD).exists():
        if read_head(dest)["origin"] == origin:
            return
        raise UserError(_HOLDS_ANOTHER.format(dest))
    views = [done[_views_of(sample)] for sample in samples]
    maps = {sample.material: done[_maps_of(sample.material)] for sample in samples}
    write_index(
        dest,
        [(sample.name, sample.source, sample.material) for sample in samples],
        [_place(result) for result in views],
        {material: _place(result) for material, result in sorted(maps.items())},
        size=views[0].findings[0].side,
        compression=compression,
        origin=origin,
    )
    _drop_unused(dest / SHARDS, [*views, *maps.values()])


def _place(result: Done) -> Place:
    assert result.place is not None  # else a picture has a fault, and so its samples
    return result.place


def _origin(samples: list[Sample], done: dict[str, Done]) -> str:
    """Hash of the decoded pixels and the names they go by."""
    digest = hashlib.sha256()
    for sample in samples:
        views, maps = done[_views_of(sample)], done[_maps_of(sample.material)]
        contents = [finding.content for finding in (*views.findings, *maps.findings)]
        digest.update(json.dumps([sample.name, sample.source, sample.material, contents]).encode())
    return digest.hexdigest()
