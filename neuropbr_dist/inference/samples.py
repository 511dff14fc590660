"""Samples of a data set to predict, with their true maps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from neuropbr_dist.config import MATERIAL_CHANGES, DataConfig, TrainConfig
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.cameras import CAMERAS_FILE
from neuropbr_dist.data.open import open_source, resolve_data, split_entries
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import realpath
from neuropbr_dist.inference.subject import Subject, owned
from neuropbr_dist.training.baseline import mean_maps

Part = Literal["val", "train", "all"]


@dataclass(frozen=True, kw_only=True)
class SetPlace:
    """Place of a data set now, or of another one; nothing named: where the run's configuration says.

    Args:
        packed_dir: a packed set.
        materials_dir: materials alone, whose views are rendered.
        input_dir, output_dir: renders and maps.
    """

    packed_dir: str | None = None
    materials_dir: str | None = None
    input_dir: str | None = None
    output_dir: str | None = None

    @property
    def named(self) -> bool:
        """Whether any place is named: perhaps another set, with another split."""
        return self != SetPlace()

    def of(self, data: DataConfig) -> DataConfig:
        """Return `data`, resolved, with the set where it lies now; each material is rendered once, and not augmented."""
        none: dict[str, Any] = dict.fromkeys(MATERIAL_CHANGES, 0.0)
        data = replace(data, **none)
        set_dirs = {
            "packed_dir": self.packed_dir, "input_dir": self.input_dir, "materials_dir": self.materials_dir
        }  # fmt: skip
        if set(set_dirs.values()) != {None}:
            data = replace(data, **set_dirs, metadata_path=None, render="auto")  # type: ignore[arg-type]
            if self.input_dir is None:
                data.output_dir = None
            else:  # its views are there
                data.environments_dir = None
        data = replace(data, output_dir=self.output_dir or data.output_dir)
        if data.render == "auto":
            data = replace(data, renders_per_epoch=None)
        data = resolve_data(data)
        return replace(data, renders_per_epoch=1) if data.render == "online" else data


@dataclass(frozen=True, kw_only=True)
class SetSamples:
    """Samples of a data set with their true maps.

    Samples are counted by name as a person counts, `sample_2` before `sample_10`, clean before dirty, as the saved
    `data.render_curriculum` selects them. Of a run whose views are rendered, each material is one sample.

    Args:
        index: a sample's place, its name (`sample_2`, or `dirty/sample_2`), or `all`.
        part: what is counted: all samples, or one side of the run's train/validation split.
        place: of the set.
    """

    index: int | str = 0
    part: Part = "all"
    place: SetPlace = field(default_factory=SetPlace)


class OpenedSet:
    """The data set that a run was trained on, or the one that is named in its place, opened once.

    Args:
        config: the run's; `data.image_size` is the side in pixels to resize to, None: the files' own.

    Raises:
        UserError: there is no data set.
    """

    def __init__(self, config: TrainConfig, wanted: SetSamples) -> None:
        self.wanted, data = wanted, wanted.place.of(config.data)
        check_there(data)
        self.config = replace(config, data=data)
        self.source = open_source(data, config.training.seed)
        self.where = data.materials_dir or data.packed_dir or data.input_dir or "the built-in materials"

    def subjects(self) -> Iterator[Subject]:
        """Yield the samples that are wanted, one after another.

        Raises:
            UserError: there is no such sample, or none of its views has a camera and the model needs one.
        """
        index, part = self.wanted.index, self.wanted.part
        entries = sorted(self.source.entries if part == "all" else self._side(part), key=_as_counted)
        chosen = (
            range(len(entries))
            if index == "all"
            else [_place(entries, index, f"{self.where}, --split {part}")]
        )
        several = len({entry.renders for entry in entries}) > 1
        known = self.wanted.place.named or part != "all"
        held_out = set() if known else {entry.key for entry in self._side("val")}
        for i in chosen:
            entry = entries[i]
            cameras = self._cameras(entry)
            if cameras is not None and not cameras.any():
                print(f"{entry.key}: left out, none of its views has a camera")
                continue
            views, maps = self.source.load(entry)
            title = f"{entry.key}, {entry.material} ({self._known_as(entry.key, held_out)})"
            label = f"Sample {i} of {len(entries)} in {self.where}: {title}"
            name = entry.key if several or index == "all" else entry.name
            yield Subject(name, title, label, owned(views), owned(maps), cameras)

    def mean(self) -> tuple[Tensor, str]:
        """Return mean maps (8, 1, 1) to compare predictions with, and which materials' they are.

        They are of the run's training side; of a set that is named, which may be another one, of all of it.
        """
        if self.wanted.place.named:
            return mean_maps(self.source, self.source.entries), "this set"
        return mean_maps(self.source, self._side("train")), "the training side"

    def _side(self, part: Part) -> Sequence[Any]:
        """Return the entries on one side of the run's split."""
        cfg = self.config
        train, val = split_entries(self.source, cfg.data, cfg.model.align, cfg.training.seed)
        return val if part == "val" else train

    def _known_as(self, key: str, held_out: set[str]) -> str:
        """Return what a sample was to the run."""
        if self.wanted.part != "all":
            return f"{self.wanted.part} side"
        if self.wanted.place.named:
            return "split unknown"
        return "val side" if key in held_out else "train side"

    def _cameras(self, entry: Any) -> Tensor | None:
        """Return an entry's cameras (3, 14); None for a model that takes views as they are."""
        alignment = Alignment.of_run(self.config, training=False)
        if alignment is None:
            return None
        cameras = alignment.of(self.source.cameras(entry), 0, entry.key)
        if not cameras.any() and self.wanted.index != "all":
            raise UserError(
                f"{entry.key}: none of its views has a camera of data.min_confidence = "
                f"{self.config.data.min_confidence} or more, and the model rectifies views by their cameras "
                f"({CAMERAS_FILE})"
            )
        return torch.from_numpy(cameras)


def _as_counted(entry: Any) -> tuple[Any, ...]:
    """Return a key that sorts entries by name, numbers in it as numbers; clean before dirty."""
    parts = re.split(r"(\d+)", entry.name)
    counted = [(part.isdecimal(), int(part)) if part.isdecimal() else (False, part) for part in parts]
    return counted, entry.name, entry.renders


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


def check_apart(out: Path, data: DataConfig) -> None:
    """Raise a UserError for an `--out-dir` among the set's own pictures, which have the names of what is written."""
    for folder in filter(None, (data.materials_dir, data.packed_dir, data.input_dir, data.output_dir)):
        if realpath(out).is_relative_to(realpath(Path(folder))):
            raise UserError(f"--out-dir {out}: lies in the data set ({folder}); name a folder outside of it")


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
