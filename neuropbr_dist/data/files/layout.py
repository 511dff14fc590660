"""The guide's folder layout -> a list of samples.

input/{clean,dirty}/<sample>/{0,1,2}.png
input/render_metadata.json                  {"<sample>": "<material>"}
input/cameras.json                          optional, see `data.cameras`
output/<material>/{albedo,roughness,metallic,normal}.png
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from neuropbr_dist.config.text import shown
from neuropbr_dist.data.cameras import CAMERAS_FILE, CameraSet, read_cameras
from neuropbr_dist.data.files.entries import (
    CURRICULA,
    MAP_FILES,
    VIEW_FILES,
    Fault,
    Renders,
    Sample,
)
from neuropbr_dist.errors import UserError, some
from neuropbr_dist.files import read_json

log = logging.getLogger(__name__)

METADATA_FILE = "render_metadata.json"


@dataclass
class Index:
    """Content of a set: the whole samples, and all that is wrong or odd."""

    samples: list[Sample] = field(default_factory=list)
    materials: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """Maps of the whole materials of a set without renders, in the order of `MAP_NAMES`."""
    partial: dict[str, list[Path]] = field(default_factory=dict)
    """Files that are there of samples, or of materials without renders, which are not whole, by name."""
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def scan(
    input_dir: Path | str,
    output_dir: Path | str,
    metadata_path: Path | str | None = None,
    curriculum: int = 0,
) -> list[Sample]:
    """Return the samples of a render curriculum, by name, clean before dirty.

    What is odd but allowed is logged, such as metadata entries without a sample folder (render sets may be partial).

    Args:
        metadata_path: None means `{input_dir}/render_metadata.json`.
        curriculum: 0 clean, 1 every clean and every dirty entry on disk, 2 dirty.

    Raises:
        UserError: A folder or the metadata is missing or malformed, or any sample
            of the curriculum is incomplete. Lists the first faults, one a line.
    """
    index = index_set(input_dir, output_dir, metadata_path, curriculum)
    for note in index.notes:
        log.info(note)
    if index.faults:
        raise UserError(list_faults(f.message for f in index.faults))
    return index.samples


def index_set(
    input_dir: Path | str,
    output_dir: Path | str,
    metadata_path: Path | str | None = None,
    curriculum: int = 0,
    *,
    cameras: bool = True,
) -> Index:
    """List a set as `scan` does, with the faults of single samples and materials returned instead of raised.

    A folder is listed once and no picture is opened, so that 100,000 samples cost
    100,000 directory reads.

    Args:
        cameras: read the set's camera file, if it has one.

    Raises:
        UserError: A folder or the metadata is missing or malformed, or the
            curriculum has no samples.
    """
    input_dir, output_dir = Path(input_dir), Path(output_dir)
    _require_folder(input_dir, "data.input_dir")
    _require_folder(output_dir, "data.output_dir")
    metadata = read_metadata(Path(metadata_path) if metadata_path else input_dir / METADATA_FILE)
    names = {renders: subfolders(input_dir / renders) for renders in CURRICULA[1]}
    if not any(names[renders] for renders in CURRICULA[curriculum]):
        raise UserError(_no_samples(input_dir, curriculum, names))

    index = Index()
    entries = sorted((name, renders) for renders in CURRICULA[curriculum] for name in names[renders])
    users: dict[str, list[str]] = {}
    for name, _ in entries:
        if name in metadata:
            users.setdefault(metadata[name], []).append(name)
    materials = _index_materials(output_dir, users, index)
    found_cameras = _cameras(input_dir) if cameras else CameraSet()
    index.faults += found_cameras.faults
    for name, renders in entries:
        folder = input_dir / renders / name
        faults = [] if name in metadata else [f"{folder}: not in the metadata"]
        try:
            found = _png_files(folder)
            faults += _view_faults(folder, found)
        except OSError as error:
            found = set()
            faults.append(f"{folder}: can't be read: {error.strerror}")
        views = [folder / file for file in VIEW_FILES if file in found]
        maps = materials.get(metadata.get(name, ""), [])
        if not faults and len(maps) == len(MAP_FILES):
            view_0, view_1, view_2 = views
            albedo, roughness, metallic, normal = maps
            pictures = (view_0, view_1, view_2), (albedo, roughness, metallic, normal)
            known = found_cameras.samples.get(name)
            encoded = known.encoded(renders) if known else None
            index.samples.append(Sample(name, renders, metadata[name], *pictures, encoded))
        else:
            index.faults += [Fault(fault, (name,)) for fault in faults]
            index.partial.setdefault(name, []).extend([*views, *maps])
    rendered = names["clean"] | names["dirty"]
    _note_unrendered(index, "metadata entries", metadata.keys() - rendered)
    _note_unrendered(index, f"entries of {CAMERAS_FILE}", found_cameras.samples.keys() - rendered)
    unused = sorted(subfolders(output_dir).difference(metadata.values()))
    if unused:
        index.notes.append(f"{len(unused)} material folders are not in the metadata: {some(unused)}")
    return index


def _cameras(input_dir: Path) -> CameraSet:
    """Return the cameras of the set's camera file, none if it has no file."""
    path = input_dir / CAMERAS_FILE
    return read_cameras(path) if path.exists() else CameraSet()


def index_materials(folder: Path | str) -> Index:
    """Return every material of a folder of materials, of which no renders are named.

    Raises:
        UserError: The folder is missing, or holds no material.
    """
    folder, index = Path(folder), Index()
    _require_folder(folder, "materials")
    names = sorted(subfolders(folder))
    if not names:
        raise UserError(f"{folder}: no materials in it; a folder for each, with {', '.join(MAP_FILES)}")
    for name, maps in _index_materials(folder, {name: [name] for name in names}, index).items():
        if len(maps) == len(MAP_FILES):
            index.materials[name] = tuple(maps)
        else:
            index.partial[name] = maps
    return index


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata's table: sample name to material folder name.

    Raises:
        UserError: The file is missing or is not one JSON object of strings with
            unique keys.
    """
    if not path.exists():
        raise UserError(
            f"{path}: missing; it must map sample folders to material folders (data.metadata_path)"
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a JSON {type(content).__name__}; an object of sample: material is needed"
        )
    faults = [
        f"{path}: {name!r} maps to {shown(material)}; a material folder's name is needed"
        for name, material in content.items()
        if not isinstance(material, str)
        or not material
        or material in (".", "..")
        or not set("/\0").isdisjoint(material)
    ]
    if faults:
        raise UserError(list_faults(faults))
    return content


def list_faults(faults: Iterable[str], limit: int = 10) -> str:
    """Return the first faults, one a line, and the count of the rest."""
    faults = list(faults)
    if len(faults) == 1:
        return faults[0]
    lines = [f"{len(faults)} faults in the data set:", *faults[:limit]]
    if len(faults) > limit:
        lines.append(f"and {len(faults) - limit} more")
    return "\n  ".join(lines)


def _require_folder(path: Path, config_field: str) -> None:
    if not path.is_dir():
        found = "a file, not a folder" if path.exists() else "no such folder"
        raise UserError(f"{path}: {found} ({config_field})")


def subfolders(path: Path) -> set[str]:
    """Return the names of the folders in `path`, hidden ones left out; none if it is missing.

    Raises:
        UserError: it can't be read, or a name in it isn't UTF-8, which metadata can't name.
    """
    try:
        with os.scandir(path) as entries:
            found = {entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    if foreign := sorted(name for name in found if not is_utf8(name)):
        raise UserError(f"{path}: {len(foreign)} folder names are not UTF-8 ({foreign[0]!r}); rename them")
    return found


def is_utf8(name: str) -> bool:
    """Return whether a file's name, as Python has it, is UTF-8 on the disk."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _no_samples(input_dir: Path, curriculum: int, names: dict[Renders, set[str]]) -> str:
    wanted = " or ".join(f"{input_dir / renders}" for renders in CURRICULA[curriculum])
    others = [
        f"{other} would have {sum(len(names[renders]) for renders in CURRICULA[other])}"
        for other in CURRICULA
        if other != curriculum
    ]
    return (
        f"no sample folders in {wanted} for data.render_curriculum = {curriculum}"
        f" (curriculum {', '.join(others)})"
    )


def _index_materials(output_dir: Path, users: dict[str, list[str]], index: Index) -> dict[str, list[Path]]:
    """Return the map files that each material in use has, in the order of `MAP_FILES`."""
    present = subfolders(output_dir)
    materials = {}
    for material in sorted(users):
        folder, samples = output_dir / material, tuple(sorted(set(users[material])))
        whose = "" if samples == (material,) else f" (for {some(samples)})"
        if material not in present:
            index.faults.append(Fault(f"{folder}: no such material folder{whose}", samples))
            continue
        try:
            found = _png_files(folder)
        except OSError as error:
            index.faults.append(Fault(f"{folder}: can't be read: {error.strerror}", samples))
            continue
        missing = [file for file in MAP_FILES if file not in found]
        if missing:
            index.faults.append(Fault(f"{folder}: no {', '.join(missing)}{whose}", samples))
        materials[material] = [folder / file for file in MAP_FILES if file in found]
    return materials


def _view_faults(folder: Path, found: set[str]) -> list[str]:
    faults = []
    missing = [file for file in VIEW_FILES if file not in found]
    extra = sorted(found.difference(VIEW_FILES))
    if missing:
        faults.append(f"{folder}: no {', '.join(missing)}")
    if extra:
        faults.append(f"{folder}: more than three views: {some(extra)} beside {', '.join(VIEW_FILES)}")
    return faults


def _png_files(folder: Path) -> set[str]:
    """Return the names of a folder's PNG files, hidden ones left out. Raises OSError."""
    return {name for name in os.listdir(folder) if name.lower().endswith(".png") and not name.startswith(".")}


def _note_unrendered(index: Index, what: str, names: set[str]) -> None:
    """Note names without a sample folder: render sets may be partial, and a file about them may know more."""
    if names:
        index.notes.append(f"{len(names)} {what} have no sample folder: {some(sorted(names))}")
