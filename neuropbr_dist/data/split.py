"""Cut a set into train and validation."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, TypeVar, overload

import numpy as np

from neuropbr_dist.data.files.entries import Entry
from neuropbr_dist.data.order import seeded_permutation
from neuropbr_dist.errors import UserError, some
from neuropbr_dist.files import read_json

E = TypeVar("E", bound=Entry)
SPLIT_FILE = "split.json"
"""Name of the file in the folder of a set's materials, or of a packed set: {"validation": [material, …]}.

The others are trained on.
"""


class Subset(Sequence[E]):
    """Some elements of a sequence, by an array of their places: loader processes share it uncopied."""

    def __init__(self, whole: Sequence[E], places: np.ndarray) -> None:
        self.whole, self.places = whole, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> E: ...
    @overload
    def __getitem__(self, index: slice) -> list[E]: ...
    def __getitem__(self, index: int | slice) -> E | list[E]:
        if isinstance(index, slice):
            return [self.whole[place] for place in self.places[index].tolist()]
        return self.whole[int(self.places[index])]


def read_split(folder: Path, known: Collection[str]) -> frozenset[str] | None:
    """Return the materials that a set's own split holds out, None where it has no split.

    Args:
        known: the set's materials.

    Raises:
        UserError: `split.json` is something else, names a material twice, or one that the set doesn't have.
    """
    path = folder / SPLIT_FILE
    if not os.path.lexists(path):
        return None
    content = read_json(path)
    names = content["validation"] if isinstance(content, dict) and content.keys() == {"validation"} else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{path}: not {{"validation": [material, …]}}')
    unknown = sorted(set(names).difference(known))
    if unknown or len(set(names)) < len(names):
        what = f"no such material: {some(unknown)}" if unknown else "a material stands in it twice"
        raise UserError(f"{path}: {what}")
    return frozenset(names)


def split_as_named(samples: Sequence[E], validation: Collection[str]) -> tuple[Subset[E], Subset[E]]:
    """Return (train, validation), each in the order of `samples`; materials in `validation` are held out.

    Raises:
        UserError: One side would have no samples.
    """
    held = np.fromiter((sample.material in validation for sample in samples), bool, len(samples))
    if held.all() or not held.any():
        side = "train on" if held.any() else "validate with"
        raise UserError(
            f"{SPLIT_FILE}: leaves no sample to {side}; mend it, or delete it to split by data.val_ratio"
        )
    return Subset(samples, np.flatnonzero(~held)), Subset(samples, np.flatnonzero(held))


def split(
    samples: Sequence[E], val_ratio: float, split_by: Literal["material", "sample"], seed: int
) -> tuple[Subset[E], Subset[E]]:
    """Return (train, validation), each in the order of `samples`.

    Validation takes `max(1, round(val_ratio * n))` of the `n` materials, or of the `n`
    sample names. Clean and dirty entries of a sample stay on one side. The choice
    depends on the set of names and `seed` only, not on the order of `samples`.

    Raises:
        UserError: There are fewer than two to choose from, or none would be left to train on.
    """
    units = [_unit(sample, split_by) for sample in samples]
    names = sorted(set(units))
    n = len(names)
    if n < 2:
        hint = "; with data.split_by = sample, samples are split" if split_by == "material" else ""
        raise UserError(
            f"data.split_by = {split_by}: the set has {n} {split_by}{'' if n == 1 else 's'};"
            f" a train/validation split needs at least 2{hint}"
        )
    held_out = max(1, round(val_ratio * n))
    if held_out >= n:
        raise UserError(
            f"data.val_ratio = {val_ratio} holds out {held_out} of {n} {split_by}s and leaves none to train on;"
            f" it must be below {(n - 0.5) / n:.3g}"
        )
    validation = {names[i] for i in seeded_permutation(n, seed)[:held_out]}
    held = np.fromiter((unit in validation for unit in units), bool, len(units))
    return Subset(samples, np.flatnonzero(~held)), Subset(samples, np.flatnonzero(held))


def _unit(sample: Entry, split_by: str) -> str:
    return sample.material if split_by == "material" else sample.name
