"""The import: materials converted in parallel, each visible at once and whole, and a summary of what was taken for what.

    DEST/<material>/{albedo,roughness,metallic,normal}.png
    DEST/import.txt, contact_sheet_<n>.jpg    what was taken for what, in words and to look at
    DEST/sources.json                         licence and source of each material
    DEST/split.json                           where the library has a split of its own
    DEST/.import/                             what is done, for going on

Whatever ends it, the same command goes on: a material is noted once its pictures are on disk under `.import/ready`,
then moves to its place by one rename; one that is noted and hasn't moved moves at the next start.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from tqdm import tqdm

from neuropbr_dist.data.files.png import encoded
from neuropbr_dist.data.importer.convert import Maps, Options, convert
from neuropbr_dist.data.importer.jobs import Job, Library, folder_name
from neuropbr_dist.data.importer.sheet import write_strip
from neuropbr_dist.data.importer.summary import ImportSummary, Row, write_summary
from neuropbr_dist.data.split import SPLIT_FILE
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import (
    JsonLines,
    check_links,
    move_folder,
    remove_leftovers,
    replacing_folder,
    write_json,
    writing,
)
from neuropbr_dist.kinds import fits
from neuropbr_dist.processes import in_parallel

SOURCES_FILE = "sources.json"
STATE, READY, STRIPS, JOURNAL = ".import", "ready", "strips", "journal.jsonl"


@dataclass
class Outcome:
    """Result of a job; a line of the journal."""

    name: str
    origin: str
    """The library."""
    key: str
    """See `Job.key`."""
    outputs: list[dict[str, Any]] = field(default_factory=list)
    """Name, side, notes, and hashes of albedo and normals of each material that was made."""
    taken: dict[str, str] = field(default_factory=dict)
    """Map to the file that it was taken from."""
    reason: str = ""
    """Reason why nothing was made, else ''."""
    about: dict[str, Any] = field(default_factory=dict)
    validation: bool | None = None


def import_materials(
    library: Library,
    dest: Path,
    options: Options,
    *,
    workers: int = 1,
    strict: bool = False,
    progress: bool = True,
) -> ImportSummary:
    """Convert every material of `library` into `dest`; goes on with what an interrupted call has left there.

    The caller sees to it that nobody else imports into `dest` at the same time.

    Args:
        strict: write nothing unless everything was understood.

    Returns:
        What was taken for what; `ImportSummary.clean` is false where anything was left out.

    Raises:
        UserError: `dest` holds something else, can't be written to, or the library can't be read.
    """
    prepare_folder(dest)
    with writing(dest):
        importer = _Importer(library, dest, options, workers, progress)
        importer.convert_all(publish=not strict)
        summary = importer.summary()
        if strict and not summary.clean:
            importer.withdraw()
        else:
            importer.finish(summary)
    return summary


def prepare_folder(dest: Path) -> None:
    """Make `dest`, unless it holds somebody's files.

    Raises:
        UserError: it does, or can't be made.
    """
    if dest.exists() and (not dest.is_dir() or (not (dest / STATE).is_dir() and any(dest.iterdir()))):
        raise UserError(f"{dest}: not empty, and no import was begun in it; name a new or empty folder")
    check_links(dest)
    with writing(dest):
        for folder in (READY, STRIPS):
            (dest / STATE / folder).mkdir(parents=True, exist_ok=True)


class _Importer:
    def __init__(self, library: Library, dest: Path, options: Options, workers: int, progress: bool) -> None:
        self.library, self.dest, self.options = library, dest, options
        self.workers, self.progress = workers, progress
        self.state = dest / STATE
        self.journal = JsonLines(self.state / JOURNAL, "the journal of an import", _is_line)
        self.before = {line["name"]: Outcome(**line) for line in self.journal.keep(lambda _: True)}
        self.done: list[Outcome] = []
        self._tidy()

    def convert_all(self, *, publish: bool) -> None:
        """Convert what isn't done yet; with `publish` each material moves to its place as it is done."""
        with tqdm(total=self.library.total, unit="material", disable=not self.progress) as bar:

            def skip(job: Job) -> bool:
                known = self._known(job)
                if known is not None:
                    self._take(known, publish)
                    bar.update()
                return known is not None

            work = _Work(self.state, self.library.origin, self.options)
            for job, outcome in in_parallel(work, self.library.jobs(skip), self.workers, chunk=1):
                self._replace(self.before.get(job.name), outcome)
                self.journal.append(asdict(outcome))
                self._take(outcome, publish)
                bar.update()

    def summary(self) -> ImportSummary:
        """Return a summary of all materials that are there, and of those of this library that aren't.

        Copies of other materials count as left out.
        """
        taken = {id(outcome) for outcome in self.done}
        names = {outcome.name for outcome in self.done if not outcome.reason}
        others = [o for o in self.before.values() if o.outputs and o.name not in names and id(o) not in taken]
        rows = []
        seen: dict[tuple[str, ...], str] = {}
        for outcome in sorted([*others, *self.done], key=lambda outcome: outcome.name):
            if outcome.reason:
                rows.append(Row(outcome.name, outcome.taken, reason=outcome.reason))
            for output in outcome.outputs if self._is_there(outcome) else ():
                original = seen.setdefault(tuple(output["content"]), output["name"])
                copy = f"the same pictures as {original}" if original != output["name"] else ""
                rows.append(
                    Row(
                        output["name"], outcome.taken, output["side"], output["notes"], copy,
                        outcome.about, outcome.validation,
                    )
                )  # fmt: skip
        return ImportSummary(rows, sorted(self.library.strays))

    def finish(self, summary: ImportSummary) -> None:
        """Leave what was taken in its place, and write what tells of it."""
        for outcome in self.done:
            self._publish(outcome)
        for row in summary.rows:
            if row.reason and row.side and (self.dest / row.name).exists():
                # A copy: kept, out of sight, for the day that its original changes.
                move_folder(self.dest / row.name, self.state / READY / row.name)
        write_json(self.dest / SOURCES_FILE, {row.name: row.about for row in summary.imported}, indent=1)
        validation = [row.name for row in summary.imported if row.validation]
        if 0 < len(validation) < len(summary.imported):
            write_json(self.dest / SPLIT_FILE, {"validation": validation}, indent=1)
        write_summary(summary, self.dest, self.state / STRIPS)

    def withdraw(self) -> None:
        """Leave nothing behind of a strict call; of a folder that was begun earlier, that."""
        if not self.before:
            shutil.rmtree(self.state)
            if {path.name for path in self.dest.iterdir()} <= {"run.lock"}:
                shutil.rmtree(self.dest)

    def _known(self, job: Job) -> Outcome | None:
        """Return an earlier call's outcome of a job, if it still holds; a refusal where its name is another library's."""
        known = self.before.get(job.name)
        if known is None or not self._is_there(known):
            return None
        if known.origin != self.library.origin and known.outputs:
            reason = f"{self.dest / job.name} was imported from {known.origin}; name another DEST"
            return Outcome(job.name, self.library.origin, "", reason=reason)
        return known if known.key == job.key(self.options) else None

    def _tidy(self) -> None:
        """Delete what a killed call left half-way; what it had noted stays."""
        remove_leftovers(self.state / READY)
        noted = {output["name"] for outcome in self.before.values() for output in outcome.outputs}
        for folder in (self.state / READY).iterdir():
            if folder.name not in noted:
                shutil.rmtree(folder)

    def _is_there(self, outcome: Outcome) -> bool:
        places = (self.dest, self.state / READY)
        return all(any((place / o["name"]).is_dir() for place in places) for o in outcome.outputs)

    def _take(self, outcome: Outcome, publish: bool) -> None:
        self.done.append(outcome)
        if publish:
            self._publish(outcome)

    def _publish(self, outcome: Outcome) -> None:
        for output in outcome.outputs:
            ready = self.state / READY / output["name"]
            if ready.is_dir():
                move_folder(ready, self.dest / output["name"])

    def _replace(self, old: Outcome | None, new: Outcome) -> None:
        """Take away what was made of pictures that have changed since; somebody else's folder stays."""
        for output in old.outputs if old else ():
            shutil.rmtree(self.dest / output["name"], ignore_errors=True)
        taken = [output["name"] for output in new.outputs if (self.dest / output["name"]).exists()]
        if taken:
            new.outputs, new.reason = [], f"{self.dest / taken[0]} is there, and was not imported"


@dataclass(frozen=True)
class _Work:
    """Work of a process on one job."""

    state: Path
    origin: str
    options: Options

    def __call__(self, job: Job) -> Outcome:
        outcome = Outcome(
            job.name, self.origin, job.key(self.options), about=dict(job.about), validation=job.validation
        )
        outcome.taken = {name: str(take) for name, take in job.takes.items()}
        if job.reason:
            outcome.reason = job.reason
            return outcome
        try:
            takes = {name: job.files.best_first(take) for name, take in job.takes.items()}
            outcome.taken = {name: str(take) for name, take in takes.items()}
            specular = job.files.best_first(job.specular) if job.specular else None
            made = convert(takes, specular, job.files.read, self.options)
        except UserError as error:
            outcome.reason = str(error)
            return outcome
        names = [job.name] if len(made) == 1 else [f"{job.name}_{number + 1}" for number in range(len(made))]
        outcome.outputs = [self._write(name, maps) for name, maps in zip(names, made, strict=True)]
        return outcome

    def _write(self, name: str, maps: Maps) -> dict[str, Any]:
        folder = self.state / READY / name
        shutil.rmtree(folder, ignore_errors=True)
        with replacing_folder(folder) as temporary:
            for map_name, pixels in maps.pixels.items():
                (temporary / f"{map_name}.png").write_bytes(encoded(pixels))
        write_strip(self.state / STRIPS / f"{name}.jpg", maps.pixels)
        content = [_hash(maps.pixels["albedo"]), _hash(maps.pixels["normal"])]
        return {"name": name, "side": len(maps.pixels["albedo"]), "notes": maps.notes, "content": content}


def _hash(pixels: np.ndarray) -> str:
    """Return two checksums: a cryptographic one would take longer than decoding does."""
    return f"{isal_zlib.crc32(pixels.data):08x}{isal_zlib.adler32(pixels.data):08x}"


_OUTPUT = {"name": str, "side": int, "notes": list[str], "content": list[str]}
_LINE = {
    "name": str, "origin": str, "key": str, "outputs": list, "taken": dict[str, str], "reason": str, "about": dict,
    "validation": bool | None,
}  # fmt: skip


def _is_line(value: Any) -> bool:
    """Return whether a value is an `Outcome`; folders by its names are deleted, so none may lead out of DEST."""
    return fits(value, _LINE) and all(
        fits(output, _OUTPUT) and output["name"] == folder_name(output["name"]) for output in value["outputs"]
    )
