"""A full check of a data set: every file is decoded, every fault is listed.

What it finds beyond `scan` and `check_headers`: damage inside a file, normal maps that
hold no unit normals or look like another map, materials and views that are copies.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from neuropbr_dist.data.decode import Role, read_picture
from neuropbr_dist.data.layout import MAP_NAMES, Fault, Index, Sample, index_set
from neuropbr_dist.errors import UserError

NORMAL_LENGTH_SLACK = 0.1
"""A pixel is no unit normal when its decoded length is further than this from 1."""
NON_UNIT_SHARE = 0.05
"""Share of such pixels above which a normal map is faulty. Filtering without renormalising makes a few."""
NORMAL_MEAN_SLACK = 0.25
"""A tangent-space normal map averages (0.5, 0.5, 1); any channel further off looks like another map."""
CHUNK = 8
"""Files handed to a process at a time; as many are redone a process after an interruption."""


@dataclass
class Report:
    """All that a verification found. `str(report)` is the table that a person reads."""

    samples: int
    """Complete sample entries, clean and dirty counted apart."""
    files: int
    """Picture files decoded, or taken from the state file."""
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """No faults (notes are allowed)."""
        return not self.faults

    @property
    def faulty_samples(self) -> list[str]:
        """Names of the samples touched by a fault, sorted."""
        return sorted({name for fault in self.faults for name in fault.samples})

    def __str__(self) -> str:
        lines = [f"fault  {fault.message}" for fault in self.faults] + [
            f"note   {note}" for note in self.notes
        ]
        verdict = (
            "clean" if self.clean else f"{len(self.faults)} faults in {len(self.faulty_samples)} samples"
        )
        return "\n".join([*lines, f"{self.samples} sample entries, {self.files} pictures: {verdict}"])


@dataclass(frozen=True)
class Finding:
    """What decoding one picture showed."""

    side: int = 0
    """Pixels; 0 where the file can't be read."""
    content: str = ""
    """Hash of the decoded pixels."""
    fault: str = ""
    note: str = ""


def verify(
    input_dir: Path | str,
    output_dir: Path | str,
    metadata_path: Path | str | None = None,
    *,
    workers: int = 1,
    progress: bool = True,
    fix_list: Path | None = None,
    resume: Path | None = None,
) -> Report:
    """Decode and judge every picture of every sample, clean and dirty.

    Args:
        workers: Processes that decode; up to 1 stays in this one.
        fix_list: File to write the faulty samples' names to, one a line.
        resume: JSON-lines state file of pictures already judged, by path, role, size and
            modification time. It is read, and grows as pictures are judged, so that an
            interrupted verification goes on where it was.

    Raises:
        UserError: A folder or the metadata is missing or malformed, or there are no samples.
    """
    index = index_set(input_dir, output_dir, metadata_path, curriculum=1)
    users = _users(index)
    findings = _judge_all(list(users), workers, progress, resume)

    report = Report(len(index.samples), len(findings), index.faults, index.notes)
    for (path, role), finding in findings.items():
        if finding.fault:
            report.faults.append(Fault(finding.fault, users[path, role]))
        if finding.note:
            report.notes.append(finding.note)
    report.faults += _odd_sizes(findings, users)
    report.faults += _repeated_views(index.samples, findings)
    report.faults += _repeated_materials(index.samples, findings)
    if fix_list:
        fix_list.write_text("".join(f"{name}\n" for name in report.faulty_samples))
    return report


def judge(path: Path, role: Role) -> Finding:
    """Decode one picture and look at its pixels."""
    try:
        pixels = read_picture(path, role)
    except UserError as error:
        return Finding(fault=str(error))
    fault = _judge_normals(pixels) if role == "normal" else ""
    if role == "albedo" and _looks_like_normals(pixels):
        fault = "looks swapped: an albedo map that holds unit normals"
    flat = role != "normal" and bool((pixels == pixels[:, :1, :1]).all())
    return Finding(
        side=pixels.shape[1],
        content=blake2b(pixels.tobytes(), digest_size=16).hexdigest(),
        fault=f"{path}: {fault}" if fault else "",
        note=f"{path}: one value throughout ({', '.join(map(str, pixels[:, 0, 0]))})" if flat else "",
    )


def _judge_normals(pixels: np.ndarray) -> str:
    """Why uint8 (3, H, W) is no tangent-space normal map, or ''."""
    mean = pixels.mean(axis=(1, 2)) / 255
    if np.abs(mean - (0.5, 0.5, 1.0)).max() > NORMAL_MEAN_SLACK:
        average = ", ".join(f"{channel:.2f}" for channel in mean)
        return f"looks swapped: averages ({average}), a normal map near (0.50, 0.50, 1.00)"
    share = _non_unit_share(pixels)
    if share > NON_UNIT_SHARE:
        return f"{share:.0%} of its normals are not unit length (allowed: {NON_UNIT_SHARE:.0%})"
    return ""


def _looks_like_normals(pixels: np.ndarray) -> bool:
    # An albedo of the normal map's own blue is no normal map: it must vary, too.
    return _judge_normals(pixels) == "" and bool((pixels != pixels[:, :1, :1]).any())


def _non_unit_share(pixels: np.ndarray) -> float:
    """Share of pixels of uint8 (3, H, W) whose decoded length is not 1 +- `NORMAL_LENGTH_SLACK`."""
    # (2p - 255)^2 in whole numbers: 255 times the decoded normal, without a float copy of the map.
    squared = sum((2 * channel.astype(np.int32) - 255) ** 2 for channel in pixels)
    low, high = (255 * (1 - NORMAL_LENGTH_SLACK)) ** 2, (255 * (1 + NORMAL_LENGTH_SLACK)) ** 2
    return float(((squared < low) | (squared > high)).mean())


Picture = tuple[Path, Role]


def _users(index: Index) -> dict[Picture, tuple[str, ...]]:
    """Each picture, also those of incomplete samples, and the names of the samples that use it."""
    users: dict[Picture, dict[str, None]] = {}
    for sample in index.samples:
        for path in (*sample.views, *sample.maps):
            users.setdefault(_picture(path), {})[sample.name] = None
    for name, paths in index.partial.items():
        for path in paths:
            users.setdefault(_picture(path), {})[name] = None
    return {picture: tuple(names) for picture, names in users.items()}


def _picture(path: Path) -> Picture:
    """A map is called by its role; a view by its number."""
    return path, next((name for name in MAP_NAMES if name == path.stem), "view")


def _judge_all(
    pictures: Sequence[Picture], workers: int, progress: bool, resume: Path | None
) -> dict[Picture, Finding]:
    known = _load_state(resume)
    stamps = {picture: _stamp(*picture) for picture in pictures}
    findings = {picture: known[stamps[picture]] for picture in pictures if stamps[picture] in known}
    rest = [picture for picture in pictures if picture not in findings]
    with (
        _parallel_map(workers) as run,
        open(resume, "a", encoding="utf-8") if resume else nullcontext() as state,
        tqdm(total=len(pictures), initial=len(findings), unit="file", disable=not progress) as bar,
    ):
        judged = run(judge, [path for path, _ in rest], [role for _, role in rest])
        for picture, finding in zip(rest, judged, strict=True):
            findings[picture] = finding
            if state:
                state.write(json.dumps([stamps[picture], vars(finding)]) + "\n")
                state.flush()
            bar.update()
    return {picture: findings[picture] for picture in pictures}


@contextmanager
def _parallel_map(workers: int) -> Iterator[Callable[..., Iterator[Finding]]]:
    """`map` over processes, in order; what has not begun when the context ends is dropped."""
    if workers <= 1:
        yield map
        return
    # spawn: a fork of a process with threads (torch's) can deadlock.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_ignore_interrupt)
    try:
        yield partial(pool.map, chunksize=CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent process, which shuts the pool down."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


Stamp = tuple[str, str, int, int]


def _stamp(path: Path, role: Role) -> Stamp:
    """What a finding holds for; a changed file gets another."""
    try:
        status = path.stat()
    except OSError:
        return str(path), role, -1, -1
    return str(path), role, status.st_size, status.st_mtime_ns


def _load_state(resume: Path | None) -> dict[Stamp, Finding]:
    if resume is None or not resume.exists():
        return {}
    lines = resume.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):  # interrupted while writing it
        resume.write_bytes(b"".join(lines[:-1]))
        lines.pop()
    try:
        return {tuple(stamp): Finding(**finding) for stamp, finding in map(json.loads, lines)}
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{resume}: not a state file of verify ({error}); delete it or name another"
        ) from error


def _odd_sizes(findings: dict[Picture, Finding], users: dict[Picture, tuple[str, ...]]) -> list[Fault]:
    """Pictures of another size than most."""
    sides = Counter(finding.side for finding in findings.values() if finding.side)
    if len(sides) < 2:
        return []
    usual, count = sides.most_common(1)[0]
    return [
        Fault(
            f"{path}: {finding.side} px, but {count} of {sides.total()} pictures are {usual} px",
            users[path, role],
        )
        for (path, role), finding in findings.items()
        if finding.side not in (0, usual)
    ]


def _repeated_views(samples: Iterable[Sample], findings: dict[Picture, Finding]) -> list[Fault]:
    faults = []
    for sample in samples:
        contents = [findings[path, "view"].content for path in sample.views]
        if all(contents) and len(set(contents)) < 3:
            faults.append(
                Fault(f"{sample.views[0].parent}: two of its views are the same picture", (sample.name,))
            )
    return faults


def _repeated_materials(samples: Iterable[Sample], findings: dict[Picture, Finding]) -> list[Fault]:
    """Materials with the albedo and the normals of another, which a split would tear apart."""
    users: dict[str, dict[str, None]] = {}
    maps: dict[str, list[Picture]] = {}
    for sample in samples:
        users.setdefault(sample.material, {})[sample.name] = None
        maps[sample.material] = [_picture(path) for path in sample.maps]
    faults = []
    first: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for material in sorted(maps):
        contents = [findings[picture].content for picture in maps[material]]
        key = contents[0], contents[3]
        if not all(key):
            continue
        original, original_contents = first.setdefault(key, (material, contents))
        if original != material:
            what = "all four maps" if contents == original_contents else "albedo and normal"
            message = f"{maps[material][0][0].parent}: the same {what} as material {original!r}"
            faults.append(Fault(message, tuple(users[material])))
    return faults
