"""A full check of a data set: every file is decoded, every fault is listed.

What it finds beyond `scan` and `check_headers`: damage inside a file, normal maps that hold no unit normals or look
like another map, materials and views that are copies, views that don't lie on their maps where their cameras say.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from neuropbr_dist.data.files.decode import Role
from neuropbr_dist.data.files.entries import Fault, Sample
from neuropbr_dist.data.files.layout import Index, index_materials, index_set
from neuropbr_dist.data.files.picture_check import PictureCheck, inspect_picture, is_picture_check
from neuropbr_dist.data.register import has_opencv
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import JsonLines, writing
from neuropbr_dist.kinds import fits
from neuropbr_dist.materials.channels import MAP_NAMES
from neuropbr_dist.processes import in_parallel

Picture = tuple[Path, Role]


@dataclass
class Verification:
    """All that a verification found. `str(verification)` is the table that a person reads."""

    samples: int
    """Complete sample entries, clean and dirty counted apart; materials where there are no renders."""
    files: int
    """Picture files decoded, or taken from the state file."""
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    what: str = "sample"
    """Unit that a set is counted in: `material` where it has no renders, else `sample`."""

    @property
    def clean(self) -> bool:
        """Whether there are no faults; notes are allowed."""
        return not self.faults

    @property
    def faulty_samples(self) -> list[str]:
        """Names of the samples touched by a fault, sorted."""
        return sorted({name for fault in self.faults for name in fault.samples})

    def __str__(self) -> str:
        lines = [f"fault  {fault.message}" for fault in self.faults] + [
            f"note   {note}" for note in self.notes
        ]
        touched = f"{len(self.faults)} faults in {len(self.faulty_samples)} {self.what}s"
        counted = "sample entries" if self.what == "sample" else "materials"
        verdict = "clean" if self.clean else touched
        return "\n".join([*lines, f"{self.samples} {counted}, {self.files} pictures: {verdict}"])


def verify(
    input_dir: Path | str | None,
    output_dir: Path | str,
    metadata_path: Path | str | None = None,
    *,
    workers: int = 1,
    progress: bool = True,
    fix_list: Path | None = None,
    resume: Path | None = None,
    cameras: bool = True,
) -> Verification:
    """Decode and inspect every picture of every sample, clean and dirty, or of every material.

    Args:
        input_dir: None: a folder of materials alone, which may differ in size.
        cameras: where the set has some, lay views on their maps by them; this needs OpenCV.
        workers: Processes that decode; up to 1 stays in this one.
        fix_list: File to write the faulty samples' names to, one a line.
        resume: JSON-lines state file of pictures already inspected, by path, role, size and
            modification time. It is read, and grows as pictures are inspected, so that an
            interrupted verification goes on where it was.

    Raises:
        UserError: A folder or the metadata is missing or malformed, there are no samples, or
            `fix_list` or `resume` can't be written.
    """
    for path in (fix_list, resume):
        if path:
            check_writable(path)
    index = index_all(input_dir, output_dir, metadata_path)
    verification = summarise(index, _inspect_all(list(pictures_of(index)), workers, progress, resume))
    if cameras:
        _check_cameras(verification, index.samples, workers, progress)
    if fix_list:
        with writing(fix_list):
            fix_list.write_text("".join(f"{name}\n" for name in verification.faulty_samples))
    return verification


def _check_cameras(
    verification: Verification, samples: Sequence[Sample], workers: int, progress: bool
) -> None:
    """Add what is wrong with cameras, and how far views and maps are apart."""
    if not any(sample.cameras is not None for sample in samples):
        return
    if not has_opencv():
        verification.notes.append(
            "cameras: views weren't laid on their maps: this needs OpenCV (opencv-python-headless)"
        )
        return
    from neuropbr_dist.data.register.check import misplaced  # OpenCV is an extra

    faults, notes = misplaced(samples, workers, progress)
    verification.faults += faults
    verification.notes += notes


def index_all(
    input_dir: Path | str | None, output_dir: Path | str, metadata_path: Path | str | None
) -> Index:
    """Return every sample of a set, clean and dirty; with no `input_dir` every material of a folder."""
    if input_dir is None:
        return index_materials(output_dir)
    return index_set(input_dir, output_dir, metadata_path, curriculum=1)


def check_writable(path: Path) -> None:
    """Raise a UserError, before hours of work, for a file that can't be written after them; makes none."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: can't be written: no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{path}: can't be written: no right to")


def summarise(index: Index, checks: dict[Picture, PictureCheck]) -> Verification:
    """Return a verification with the faults of single pictures and of those seen only across pictures."""
    users = pictures_of(index)
    count, what = (len(index.samples), "sample") if index.samples else (len(index.materials), "material")
    verification = Verification(count, len(checks), list(index.faults), list(index.notes), what)
    for (path, role), check in checks.items():
        if check.fault:
            verification.faults.append(Fault(check.fault, users[path, role]))
        if check.note:
            verification.notes.append(check.note)
    if index.materials:
        for name, paths in index.materials.items():
            verification.faults += _odd_sizes(
                {picture: checks[picture] for picture in map(picture_at, paths)}, users, name
            )
    else:
        verification.faults += _odd_sizes(checks, users, "")
    verification.faults += _repeated_views(index.samples, checks)
    verification.faults += _repeated_materials(index, checks)
    return verification


def pictures_of(index: Index) -> dict[Picture, tuple[str, ...]]:
    """Return each picture, also those of incomplete samples, and the names of the samples that use it."""
    users: dict[Picture, dict[str, None]] = {}
    for sample in index.samples:
        for path in (*sample.views, *sample.maps):
            users.setdefault(picture_at(path), {})[sample.name] = None
    for name, paths in [*index.materials.items(), *index.partial.items()]:
        for path in paths:
            users.setdefault(picture_at(path), {})[name] = None
    return {picture: tuple(names) for picture, names in users.items()}


def picture_at(path: Path) -> Picture:
    """Return a file's path and role: a map is called by its role, a view by its number."""
    return path, next((name for name in MAP_NAMES if name == path.stem), "view")


def _inspect_all(
    pictures: Sequence[Picture], workers: int, progress: bool, resume: Path | None
) -> dict[Picture, PictureCheck]:
    stamps = {picture: stamp(*picture) for picture in pictures}
    state = JsonLines(resume, "a state file of verify", _is_inspection) if resume else None
    known = {
        tuple(line[0]): PictureCheck(**line[1]) for line in (state.keep(lambda _line: True) if state else [])
    }
    checks = {picture: known[stamps[picture]] for picture in pictures if stamps[picture] in known}
    rest = [picture for picture in pictures if picture not in checks]
    with tqdm(total=len(pictures), initial=len(checks), unit="file", disable=not progress) as bar:
        for picture, check in in_parallel(_inspect, rest, workers):
            checks[picture] = check
            if state:
                state.append([stamps[picture], vars(check)])
            bar.update()
    return {picture: checks[picture] for picture in pictures}


def _inspect(picture: Picture) -> PictureCheck:
    return inspect_picture(*picture)[0]


def _is_inspection(line: object) -> bool:
    return isinstance(line, list) and len(line) == 2 and fits(line[0], STAMP) and is_picture_check(line[1])


Stamp = tuple[str, str, int, int]
STAMP = str, str, int, int
"""A `Stamp` as JSON has it, see `kinds.fits`."""


def stamp(path: Path, role: Role) -> Stamp:
    """Return the state of a file for which a check holds: path, role, size and time; a changed file has another."""
    try:
        status = path.stat()
    except OSError:
        return str(path), role, -1, -1
    return str(path), role, status.st_size, status.st_mtime_ns


def _odd_sizes(
    checks: dict[Picture, PictureCheck], users: dict[Picture, tuple[str, ...]], material: str
) -> list[Fault]:
    """Return faults of pictures of another size than most, of a set or of one material."""
    sides = Counter(check.side for check in checks.values() if check.side)
    if len(sides) < 2:
        return []
    usual, count = sides.most_common(1)[0]
    whose = f" of {material!r}" if material else ""
    return [
        Fault(
            f"{path}: {check.side} px, but {count} of {sides.total()} pictures{whose} are {usual} px",
            users[path, role],
        )
        for (path, role), check in checks.items()
        if check.side not in (0, usual)
    ]


def _repeated_views(samples: Iterable[Sample], checks: dict[Picture, PictureCheck]) -> list[Fault]:
    faults = []
    for sample in samples:
        contents = [checks[path, "view"].content for path in sample.views]
        if all(contents) and len(set(contents)) < 3:
            faults.append(
                Fault(f"{sample.views[0].parent}: two of its views are the same picture", (sample.name,))
            )
    return faults


def _repeated_materials(index: Index, checks: dict[Picture, PictureCheck]) -> list[Fault]:
    """Return faults of materials with the albedo and the normals of another, which a split would tear apart."""
    users: dict[str, dict[str, None]] = {name: {name: None} for name in index.materials}
    maps: dict[str, list[Picture]] = {
        name: [*map(picture_at, paths)] for name, paths in index.materials.items()
    }
    for sample in index.samples:
        users.setdefault(sample.material, {})[sample.name] = None
        maps[sample.material] = [picture_at(path) for path in sample.maps]
    faults = []
    first: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for material in sorted(maps):
        contents = [checks[picture].content for picture in maps[material]]
        key = contents[0], contents[3]
        if not all(key):
            continue
        original, original_contents = first.setdefault(key, (material, contents))
        if original != material:
            what = "all four maps" if contents == original_contents else "albedo and normal"
            message = f"{maps[material][0][0].parent}: the same {what} as material {original!r}"
            faults.append(Fault(message, tuple(users[material])))
    return faults
