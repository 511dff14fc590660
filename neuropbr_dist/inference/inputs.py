"""What to predict: a sample of the run's data set, or three renders of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from neuropbr_dist.config import DataConfig, TrainConfig
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.cameras import CAMERAS_FILE, NOT_KNOWN, read_cameras
from neuropbr_dist.data.files.decode import read_picture
from neuropbr_dist.data.files.layout import list_faults
from neuropbr_dist.data.open import open_source, resolve_data, split_entries
from neuropbr_dist.data.sources import Source
from neuropbr_dist.errors import UserError, some
from neuropbr_dist.training.baseline import mean_maps

Part = Literal["val", "train", "all"]


@dataclass(frozen=True)
class Subject:
    """One material to predict."""

    name: str
    """Of the folder that its maps go to, where `--out-dir` asks for one."""
    title: str
    """What it is, in a few words."""
    label: str
    """What it is and where it is from, on one line."""
    views: Tensor
    """uint8 (3, 3, S, S)."""
    maps: Tensor | None = None
    """The true maps, uint8 (8, S, S), where they are known."""
    cameras: Tensor | None = None
    """(3, 14), see `materials.plane.encode`; None for a model that takes views as they are."""


def open_subjects(
    config: TrainConfig,
    index: int | str,
    part: Part,
    size: int | None,
    input_dir: str | None = None,
    output_dir: str | None = None,
    packed_dir: str | None = None,
    materials_dir: str | None = None,
) -> Iterator[Subject]:
    """Sample `index`, or one after another all, of the data set that the run was trained on.

    Samples are counted by name as a person counts, `sample_2` before `sample_10`, clean before dirty, as the saved
    `data.render_curriculum` selects them. Of a run whose views are rendered, each material is one sample.

    Args:
        index: a sample's place, its name (`sample_2`, or `dirty/sample_2`), or `all`.
        part: what is counted: all samples, or one side of the run's train/validation split.
        size: side in pixels to resize to; None: the files' own.
        input_dir, output_dir, packed_dir, materials_dir: where the data set lies now, if not where the
            configuration says.

    Raises:
        UserError: no data set there, no such sample in it, or none of its views has a camera and the model needs one.
    """
    data = moved_to(replace(config.data, image_size=size), input_dir, output_dir, packed_dir, materials_dir)
    check_there(data)
    source = open_source(data, config.training.seed)
    where = data.materials_dir or data.packed_dir or data.input_dir or "the built-in materials"
    alignment = Alignment.of_run(replace(config, data=data), training=False)
    entries = sorted(source.entries if part == "all" else _side(source, config, part), key=_as_counted)
    chosen = range(len(entries)) if index == "all" else [_place(entries, index, f"{where}, --split {part}")]
    several = len({entry.source for entry in entries}) > 1
    moved = {input_dir, output_dir, packed_dir, materials_dir} != {None}  # perhaps another set, another split
    held_out = set() if moved or part != "all" else {e.key for e in _side(source, config, "val")}
    for i in chosen:
        entry, known = entries[i], f"{part} side"
        if part == "all":
            known = "split unknown" if moved else "val side" if entry.key in held_out else "train side"
        cameras = alignment.of(source.cameras(entry), 0, entry.key) if alignment else None
        if cameras is not None and not cameras.any():
            if index != "all":
                raise UserError(
                    f"{entry.key}: none of its views has a camera of data.min_confidence = {data.min_confidence} or "
                    f"more, and the model rectifies views by their cameras ({CAMERAS_FILE})"
                )
            print(f"{entry.key}: left out, none of its views has a camera")
            continue
        views, maps = source.load(entry)
        title = f"{entry.key}, {entry.material} ({known})"
        label = f"Sample {i} of {len(entries)} in {where}: {title}"
        seen = None if cameras is None else torch.from_numpy(cameras)
        name = entry.key if several or index == "all" else entry.name
        yield Subject(name, title, label, _tensor(views), _tensor(maps), seen)


def mean_of_training(
    config: TrainConfig,
    size: int | None,
    input_dir: str | None = None,
    output_dir: str | None = None,
    packed_dir: str | None = None,
    materials_dir: str | None = None,
) -> tuple[Tensor, str]:
    """Return mean maps (8, 1, 1) to compare predictions with, and which materials' they are.

    Of the run's training side; of a set that lies elsewhere, which may be another one, of all of it.
    """
    data = moved_to(replace(config.data, image_size=size), input_dir, output_dir, packed_dir, materials_dir)
    source = open_source(data, config.training.seed)
    if {input_dir, output_dir, packed_dir, materials_dir} != {None}:
        return mean_maps(source, source.entries), "this set"
    return mean_maps(source, _side(source, config, "train")), "the training side"


def moved_to(
    data: DataConfig,
    input_dir: str | None,
    output_dir: str | None,
    packed_dir: str | None,
    materials_dir: str | None,
) -> DataConfig:
    """Return `data`, resolved, with the set where it lies now; each material is rendered once."""
    named = {"packed_dir": packed_dir, "input_dir": input_dir, "materials_dir": materials_dir}
    if set(named.values()) != {None}:
        data = replace(data, **named, metadata_path=None, render="auto")  # type: ignore[arg-type]
        if input_dir is None:
            data.output_dir = None
    data.output_dir = output_dir or data.output_dir
    if data.render == "auto":
        data = replace(data, renders_per_epoch=None)
    data = resolve_data(data)
    return replace(data, renders_per_epoch=1) if data.render == "online" else data


def _as_counted(entry: Any) -> tuple[Any, ...]:
    """A key that sorts entries by name, numbers in it as numbers; clean before dirty."""
    parts = re.split(r"(\d+)", entry.name)
    counted = [(part.isdecimal(), int(part)) if part.isdecimal() else (False, part) for part in parts]
    return counted, entry.name, entry.source


def _place(entries: Sequence[Any], index: int | str, where: str) -> int:
    """Return the place of a sample that is named, or counted.

    Raises:
        UserError: there is none.
    """
    if isinstance(index, str):
        found = [i for i, entry in enumerate(entries) if index in (entry.name, entry.key)]
        if not found:
            raise UserError(f"--sample {index}: no such sample ({where}); the first is {entries[0].key}")
        return found[0]
    if not 0 <= index < len(entries):
        raise UserError(f"--sample-idx {index}; allowed: 0 to {len(entries) - 1}, or all ({where})")
    return index


def check_there(data: DataConfig) -> None:
    """Raise a UserError that names the flag to say it by, unless the folders that `data`, resolved, names are there."""
    for alone, flag, what in (
        (data.packed_dir, "--data", "packed set"), (data.materials_dir, "--materials", "folder of materials"),
    ):  # fmt: skip
        if alone is not None:
            if not Path(alone).is_dir():
                raise UserError(f"{alone}: no such folder; say by {flag} where the {what} lies now")
            return
    if (data.input_dir is None) != (data.output_dir is None):
        raise UserError("--data-input-dir and --data-output-dir: name both; the run's own data were built in")
    for folder, flag in ((data.input_dir, "--data-input-dir"), (data.output_dir, "--data-output-dir")):
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"{folder}: no such folder; say by {flag} where the run's data set lies now")


def _side(source: Source, config: TrainConfig, part: Part) -> Sequence[Any]:
    """The entries on one side of the run's split."""
    train, val = split_entries(source, config.data, config.model.align, config.training.seed)
    return val if part == "val" else train


def find_triples(folder: Path, skip: Path) -> list[Path]:
    """Folders with three renders each: `folder` itself, or every folder in it.

    Args:
        skip: not looked into: results of an earlier call.

    Raises:
        UserError: `folder` is missing, any folder has not exactly three PNG files, or `skip` has.
    """
    if not folder.is_dir():
        raise UserError(f"--input-dir {folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if skip.is_dir() and len(_pngs(skip)) == 3:
        raise UserError(f"--out-dir {skip}: holds three PNG renders itself; name another folder")
    inside = [path for path in inside if path.resolve() != skip.resolve()]
    triples = [folder] if _pngs(folder) or not inside else inside
    faults = []
    for triple in triples:
        names = [path.name for path in _pngs(triple)]
        if len(names) != 3:
            found = f": {some(names, 5)}" if names else ""
            faults.append(f"{triple}: exactly three PNG files are needed, found {len(names)}{found}")
    if faults:
        raise UserError("; ".join(faults[:5]))
    return triples


def open_triple(folder: Path, size: int | None, cameras: Tensor | None = None) -> Subject:
    """The three PNG files of a folder as views, in alphabetical order.

    Args:
        size: side in pixels to resize to; None: the files' own.
        cameras: of the views, in the same order (`cameras_of_triples`).

    Raises:
        UserError: a file can't be read or isn't square, or the three differ in size.
    """
    paths = _pngs(folder)
    pictures = [read_picture(path, "view", size) for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            sides = f"{picture.shape[1]} px a side, but {paths[0]} has {pictures[0].shape[1]}"
            raise UserError(f"{path}: {sides}; --size N resizes all to one size")
    label = f"Renders {', '.join(path.name for path in paths)} of {folder}"
    name = folder.resolve().name
    return Subject(name, name, label, _tensor(np.stack(pictures)), cameras=cameras)


def cameras_of_triples(folder: Path, triples: Sequence[Path], data: DataConfig) -> list[Tensor]:
    """The cameras (3, 14) of each triple, from `cameras.json` in `folder`: samples go by the triples' names.

    Raises:
        UserError: the file isn't there, is wrong, or has no camera that counts of one of the triples.
    """
    path, names = folder / CAMERAS_FILE, [triple.resolve().name for triple in triples]
    if not path.exists():
        raise UserError(f"{path}: missing; the model rectifies views by their cameras (docs/data.md)")
    found = read_cameras(path)
    if found.faults:
        raise UserError(list_faults(fault.message for fault in found.faults))
    cameras = []
    for name in names:
        rows = found.samples[name].encoded("clean") if name in found.samples else NOT_KNOWN
        cameras.append(torch.from_numpy(Alignment(min_confidence=data.min_confidence).of(rows, 0, name)))
        if not cameras[-1].any():
            raise UserError(
                f"{path}: {name}: no view has a camera of confidence {data.min_confidence} or more"
            )
    return cameras


def _pngs(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() == ".png" and path.is_file() and not path.name.startswith(".")
    )


def _tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pictures))  # a copy: cached samples are read-only memory maps
