"""MatSynth (Vecchio and Deschaintre, CVPR 2024): parquet files of its schema, or its stream from the hub.

A row is a material: `name`, `category`, `metadata` {license, source, link, authors, …}, and pictures `basecolor`,
`normal` (OpenGL), `roughness`, `metallic`, each {bytes, path}; others (height, opacity, …) aren't needed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuropbr_dist.data.importer.assign import Take
from neuropbr_dist.data.importer.jobs import Encoded, Job, folder_name, unique
from neuropbr_dist.data.importer.pictures import library
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import realpath, require_file
from neuropbr_dist.kinds import fits
from neuropbr_dist.materials.channels import MapName

COLUMNS: dict[MapName, str] = {
    "albedo": "basecolor",
    "normal": "normal",
    "roughness": "roughness",
    "metallic": "metallic",
}
ABOUT = ("name", "category", "metadata")
KEPT = ("license", "source", "link", "authors")
"""Fields of `metadata` that attribution needs."""
VALIDATION = ("test", "validation")
"""Splits of the set that become the validation side."""
_TOLD = str | int | None | list[str]
HUB = "hub:"
"""`hub:gvecchio/MatSynth` as SRC."""


@dataclass(frozen=True)
class Wanted:
    """Choice of a set's materials to import; empty: all."""

    licences: tuple[str, ...] = ()
    """`cc0`, `cc-by`, `cc-by-sa`, …: in any spelling and version."""
    categories: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    def takes(self, about: Mapping[str, Any]) -> bool:
        """Return whether a material with this licence and category is wanted."""
        return not (
            (
                self.licences
                and licence_key(str(about.get("license") or "")) not in map(licence_key, self.licences)
            )
            or (self.categories and str(about.get("category")).lower() not in map(str.lower, self.categories))
        )


def licence_key(text: str) -> str:
    """Return a licence without its version and in one spelling: `CC BY-SA 4.0` is `ccbysa`, `CC0 1.0 Universal` `cc0`."""
    text = re.sub(r"\d+\.\d+|universal|international|unported|licen[cs]e|public domain", "", text.lower())
    return re.sub(r"[^a-z0-9]", "", text)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Report whatever pyarrow finds wrong while it reads a parquet file as a fault of the file.

    Raises:
        UserError: names the file, and what is wrong.
    """
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        raise UserError(
            f"{path}: not a parquet file that can be read ({' '.join(str(error).split())})"
        ) from error


class ParquetLibrary:
    """Rows of local parquet files.

    Args:
        src: a file, or a folder with files of any depth. Their names tell the split: `test-00000-of-00008.parquet`.

    Raises:
        UserError: a file isn't parquet of this schema, nothing is left of what is wanted, or pyarrow isn't there.
    """

    def __init__(self, src: Path, wanted: Wanted) -> None:
        self._parquet = library("pyarrow.parquet", "matsynth", str(src))
        self.strays: list[str] = []
        self.origin = str(realpath(src))
        files = [src] if src.is_file() else sorted(src.rglob("*.parquet"))
        tally = Tally(wanted)
        self._listed: list[tuple[Path, int, int, Job]] = []
        for path in files:
            self._list(path, wanted, tally)
        tally.require_some(src)
        self.total: int | None = len(self._listed)

    def jobs(self, skip: Callable[[Job], bool]) -> Iterator[Job]:
        """Yield the materials in the order of the files: one row is in memory at a time."""
        rest = [one for one in self._listed if not skip(one[3])]
        groups: dict[tuple[Path, int], dict[int, Job]] = {}
        for path, group, row, job in rest:
            groups.setdefault((path, group), {})[row] = job
        for (path, group), rows in groups.items():
            for row, values in self._pictures(path, group, rows):
                yield _filled(rows[row], values)

    def _pictures(
        self, path: Path, group: int, rows: Container[int]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        with readable(path):
            file = self._open(path)
            columns = [name for name in COLUMNS.values() if name in file.schema_arrow.names]
            batches = file.iter_batches(batch_size=1, row_groups=[group], columns=columns)
            for row, batch in enumerate(batches):
                if row in rows:
                    yield row, batch.to_pylist()[0]

    def _list(self, path: Path, wanted: Wanted, tally: Tally) -> None:
        split = split_of(path)
        if wanted.splits and split not in wanted.splits:
            tally.left_out["split " + str(split)] += 1
            return
        with readable(path):
            self._list_file(path, split, tally)

    def _list_file(self, path: Path, split: str | None, tally: Tally) -> None:
        file = self._open(path)
        missing = {"name", *COLUMNS.values()} - {"metallic"} - set(file.schema_arrow.names)
        if missing:
            raise UserError(f"{path}: no column {', '.join(sorted(missing))}; not of MatSynth's schema")
        categories = _categories(file.schema_arrow.metadata or {})
        about = [name for name in ABOUT if name in file.schema_arrow.names]
        status = path.stat()
        for group in range(file.num_row_groups):
            for row, values in enumerate(file.read_row_group(group, columns=about).to_pylist()):
                stamp = (path.name, status.st_size, status.st_mtime_ns, group, row)
                job = tally.job(values, split, categories, stamp)
                if job:
                    self._listed.append((path, group, row, job))

    def _open(self, path: Path) -> Any:
        require_file(path)
        return self._parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


class HubLibrary:
    """Rows streamed from the hub, or from a folder that is laid out as it is there, through `datasets`.

    Args:
        name: as `datasets.load_dataset` takes it.

    Raises:
        UserError: it can't be opened, or `datasets` isn't there.
    """

    def __init__(self, name: str, wanted: Wanted) -> None:
        self._datasets = library("datasets", "matsynth", HUB + name)
        self.strays: list[str] = []
        self.total: int | None = None
        self.name, self.wanted, self.origin = name, wanted, HUB + name
        splits = self._ask(lambda: self._datasets.get_dataset_split_names(name))
        unknown = set(wanted.splits) - set(splits)
        if unknown:
            raise UserError(f"{name}: no split {', '.join(sorted(unknown))}; it has {', '.join(splits)}")
        self.splits = [split for split in splits if split in (wanted.splits or splits)]

    def jobs(self, skip: Callable[[Job], bool]) -> Iterator[Job]:
        """Yield the materials as they arrive."""
        tally = Tally(self.wanted)
        for split in self.splits:
            rows, categories = self._rows(split)
            for number, values in enumerate(self._each(rows)):
                job = tally.job(values, split, categories, (self.name, split, number))
                if job and not skip(job):
                    yield _filled(job, values)
        tally.require_some(Path(HUB + self.name))

    def _rows(self, split: str) -> tuple[Iterable[Mapping[str, Any]], list[str]]:
        def opened() -> tuple[Any, list[str]]:
            rows = self._datasets.load_dataset(self.name, split=split, streaming=True)
            features = rows.features
            wanted = [name for name in (*ABOUT, *COLUMNS.values()) if name in features]
            rows = rows.select_columns(wanted)
            for column in set(wanted) & set(COLUMNS.values()):
                rows = rows.cast_column(column, self._datasets.Image(decode=False))
            return rows, list(getattr(features.get("category"), "names", []))

        return self._ask(opened)

    def _each(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        iterator = iter(rows)
        while (row := self._ask(lambda: next(iterator, None))) is not None:
            yield row

    def _ask(self, question: Callable[[], Any]) -> Any:
        errors = self._datasets.exceptions.DatasetsError, OSError, ValueError
        try:
            return question()
        except errors as error:
            text = " ".join(str(error).split())
            raise UserError(f"{HUB}{self.name}: {text}; give the same command again to go on") from error


class Tally:
    """Rows turned into jobs, and how many weren't wanted."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted, self.taken = wanted, 0
        self.left_out: Counter[str] = Counter()
        self._names: set[str] = set()

    def job(
        self, values: Mapping[str, Any], split: str | None, categories: list[str], stamp: tuple[Any, ...]
    ) -> Job | None:
        """Return the material of a row, its pictures yet to be filled in; None if it isn't wanted."""
        about = _about(values, categories)
        name = unique(folder_name(str(values["name"])), [], self._names)
        if not self.wanted.takes(about):
            self.left_out[f"{about.get('license')}, {about.get('category')}"] += 1
            return None
        self.taken += 1
        validation = None if split is None else split in VALIDATION
        return Job(name, Encoded(name, {}), stamps=(stamp,), about=about, validation=validation)

    def require_some(self, src: Path) -> None:
        """Raise a UserError where nothing was wanted: it says what there is."""
        if not self.taken:
            there = "; ".join(f"{what}: {count}" for what, count in self.left_out.most_common(8))
            raise UserError(
                f"{src}: no material of the licence, category and split asked for; it holds {there or 'none'}"
            )


def is_parquet(src: Path) -> bool:
    """Return whether a file is parquet, or a folder holds any."""
    return src.suffix == ".parquet" if src.is_file() else any(src.rglob("*.parquet"))


def split_of(path: Path) -> str | None:
    """Return the split that a file's name or its folder's tells, None where neither does."""
    for text in (path.name, path.parent.name):
        if found := re.match(r"(train|test|validation)\b", text):
            return found[1]
    return None


def _filled(job: Job, values: Mapping[str, Any]) -> Job:
    pictures = {column: values.get(column) for column in COLUMNS.values()}
    contents = {
        column: picture["bytes"]
        for column, picture in pictures.items()
        if isinstance(picture, Mapping) and isinstance(picture.get("bytes"), bytes)
    }
    takes: dict[MapName, Take] = {
        name: Take((column,), convention="opengl" if name == "normal" else None)
        for name, column in COLUMNS.items()
        if column in contents
    }
    missing = [name for name in ("albedo", "normal", "roughness") if name not in takes]
    reason = f"no {' and no '.join(missing)}" if missing else ""
    return replace(job, files=Encoded(job.name, contents), takes=takes, reason=reason)


def _about(values: Mapping[str, Any], categories: list[str]) -> dict[str, Any]:
    metadata = values.get("metadata")
    known = metadata if isinstance(metadata, Mapping) else {}
    category = values.get("category")
    if isinstance(category, int) and 0 <= category < len(categories):
        category = categories[category]
    told = {"category": category, **{name: known.get(name) for name in KEPT}}
    return {name: value if fits(value, _TOLD) else str(value) for name, value in told.items()}


def _categories(metadata: Mapping[bytes, bytes]) -> list[str]:
    """Return the names of the classes, as `datasets` writes them into a parquet file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return list(map(str, features["category"]["names"]))
    except (KeyError, ValueError, TypeError, RecursionError):
        return []
