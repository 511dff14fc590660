"""Files of data sets and of what is made from them, changed in every way; see `test_fuzz`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pyarrow
import pyarrow.parquet
import pytest
import tifffile
from PIL import Image

from neuropbr_dist.data.cameras import read_cameras
from neuropbr_dist.data.files.decode import read_picture
from neuropbr_dist.data.files.headers import check_headers, roles_of
from neuropbr_dist.data.files.layout import read_metadata, scan
from neuropbr_dist.data.files.verify import verify
from neuropbr_dist.data.importer import pictures
from neuropbr_dist.data.importer.convert import Options
from neuropbr_dist.data.importer.folders import FolderLibrary
from neuropbr_dist.data.importer.matsynth import COLUMNS, ParquetLibrary, Wanted
from neuropbr_dist.data.importer.run import JOURNAL, STATE, import_materials
from neuropbr_dist.data.packed import index
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.packed.source import PackedSource
from neuropbr_dist.data.register.work import Outcome, ViewOutcome, is_line
from neuropbr_dist.data.split import read_split
from neuropbr_dist.files import JsonLines
from tests.support.fuzz import FEW, MANY, Case, fuzz, refused
from tests.support.material_files import png, write_cameras_of, write_set

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("nothing_on_the_console")]
METADATA = index.METADATA
RNG = np.random.default_rng(0)


def a_packed_set(folder: Path) -> Case:
    renders, maps = write_set(folder / "set", {"a": "wood", "b": "stone"}, size=16)
    assert pack(renders, maps, folder / "packed", progress=False).clean

    def read() -> None:
        source = PackedSource(folder / "packed", 0)
        source.check_shards()
        for entry in source.entries:
            source.load(entry)

    index = {folder / "packed" / f"{name}.npy": "bytes" for name in ("samples", "materials", "records")}
    return read, {folder / "packed" / METADATA: "json", **index}


def a_set(folder: Path) -> Case:
    names = {"a": "wood", "b": "stone"}
    renders, _ = write_set(folder, names, size=16)
    write_cameras_of(renders, list(names))
    (folder / "split.json").write_text('{"validation": ["wood"]}')

    def read() -> None:
        for call in (
            partial(read_cameras, renders / "cameras.json"),
            partial(read_metadata, renders / "render_metadata.json"),
            partial(read_split, folder, ["wood", "stone"]),
            partial(read_picture, renders / "clean/a/0.png", "view"),
        ):
            refused(call)

    files = {
        renders / "cameras.json": "json",
        renders / "render_metadata.json": "json",
        folder / "split.json": "json",
    }
    return read, {**files, renders / "clean/a/0.png": "bytes"}


def pictures_to_import(folder: Path) -> Case:
    """Every format and depth that is read."""
    pixels = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for suffix in ("jpg", "webp", "tga", "bmp", "tif", "png"):
        Image.fromarray(pixels).save(folder / f"a.{suffix}")
    tifffile.imwrite(folder / "b.tif", pixels.astype(np.float32) / 255, compression="zlib")
    tifffile.imwrite(folder / "c.tif", pixels.astype(np.uint16), tile=(16, 16))
    (folder / "d.png").write_bytes(png(pixels.astype(np.uint16) * 257, 2, 16))
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"RGB": pixels.astype(np.float16)}).write(str(folder / "e.exr"))
    files = sorted(folder.iterdir())

    def read() -> None:
        for path in files:
            refused(partial(pictures.read_size, path))
            refused(partial(pictures.read_picture, path))

    return read, dict.fromkeys(files, "bytes")


def a_table(rows: Mapping[str, Any]) -> bytes:
    pyarrow.parquet.write_table(pyarrow.table(rows), buffer := io.BytesIO())
    return buffer.getvalue()


def some_rows() -> dict[str, Any]:
    Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(buffer := io.BytesIO(), "PNG")
    picture = {"bytes": buffer.getvalue(), "path": "a.png"}
    about = {"license": "CC0", "source": "x", "link": "y", "authors": ["z"]}
    rows: dict[str, Any] = {"name": ["a", "b"], "category": [0, 1], "metadata": [about, about]}
    return rows | {name: [picture, picture] for name in ("basecolor", "normal", "roughness", "metallic")}


def imported(path: Path) -> None:
    for job in ParquetLibrary(path, Wanted(licences=("cc0",))).jobs(lambda _: False):
        job.key(Options())
        json.dumps(dict(job.about))
        for take in job.takes.values():
            refused(partial(job.files.read, take.files[0]))


def a_parquet(folder: Path) -> Case:
    path = folder / "train-0.parquet"
    path.write_bytes(a_table(some_rows()))
    return partial(imported, path), {path: "bytes"}


def a_parquet_of_other_types(folder: Path) -> Case:
    """Columns of any kind: text, numbers, lists and objects where others belong."""
    path = folder / "rows.json"
    rows = some_rows()
    text = {"bytes": "a", "path": "a.png"}
    rows = {name: [text, text] if name in COLUMNS.values() else column for name, column in rows.items()}
    path.write_text(json.dumps(rows))

    def read() -> None:
        try:
            content = a_table(json.loads(path.read_text()))
        except (pyarrow.ArrowException, OverflowError, UnicodeError, ValueError, TypeError, AttributeError):
            return  # no table
        (target := path.with_name("made.parquet")).write_bytes(content)
        refused(partial(imported, target))

    return read, {path: "values"}


def an_import(folder: Path) -> Case:
    """The journal, from which it goes on: nothing outside DEST may go."""
    write_set(folder / "set", {"a": "wood", "b": "stone"}, size=16)
    victim = folder / "victim"
    victim.mkdir()

    def read() -> None:
        source = FolderLibrary(folder / "set/output", folder / "dest")
        import_materials(source, folder / "dest", Options(), progress=False)
        assert victim.is_dir() and (folder / "set/output/wood/albedo.png").exists()

    read()
    return read, {folder / "dest" / STATE / JOURNAL: "lines"}


def a_packing(folder: Path) -> Case:
    """One that was interrupted before its end."""
    renders, maps = write_set(folder / "set", {"a": "wood", "b": "stone"}, size=16)

    def read() -> None:
        pack(renders, maps, folder / "packed", progress=False)
        PackedSource(folder / "packed", 0).check_shards()

    read()
    (folder / "packed" / METADATA).unlink()
    return read, {folder / "packed" / index.JOURNAL: "lines"}


def notes_of_a_set(folder: Path) -> Case:
    """What earlier looks at a set's pictures have left to go on from."""
    renders, maps = write_set(folder, {"a": "wood"}, size=16)
    judged, headers, found = folder / "verify.jsonl", folder / "headers.json", folder / "register.jsonl"
    camera = {"map_to_view": [[0.9, 0.1, 0.5], [0.1, -0.8, 0.5], [0.0, 0.1, 1.0]], "eye": [0.1, -0.4, 1.1]}
    views = {"clean": [ViewOutcome(**camera, confidence=0.5), ViewOutcome(), ViewOutcome(reason="why")]}
    journal = JsonLines(found, "the journal of a registration", is_line)
    journal.append({"prior": "free", "outcome": Outcome("a", "wood", [[1, 2]], views).line()})

    def read() -> None:
        refused(lambda: verify(renders, maps, resume=judged, progress=False, cameras=False))
        refused(lambda: check_headers(roles_of(scan(renders, maps)), None, cache=headers))
        refused(lambda: [Outcome.of_line(line["outcome"]) for line in journal.read() if "outcome" in line])

    read()
    return read, {judged: "lines", headers: "json", found: "lines"}


CASES = [
    a_packed_set, a_set, pictures_to_import, a_parquet, a_parquet_of_other_types, an_import, a_packing, notes_of_a_set,
]  # fmt: skip


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_changed_files_are_refused_or_read(tmp_path, make):
    fuzz(tmp_path, make, FEW)


@pytest.mark.drill
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_thousands_of_changed_files(tmp_path, make):
    fuzz(tmp_path, make, MANY)
