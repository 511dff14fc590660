"""Cut a set into train and validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from neuropbr_dist.data.layout import Entry
from neuropbr_dist.data.order import seeded_permutation
from neuropbr_dist.errors import UserError

E = TypeVar("E", bound=Entry)


def split(
    samples: Sequence[E], val_ratio: float, split_by: Literal["material", "sample"], seed: int
) -> tuple[list[E], list[E]]:
    """(train, validation), each in the order of `samples`.

    Validation takes `max(1, round(val_ratio * n))` of the `n` materials, or of the `n`
    sample names. Clean and dirty entries of a sample stay on one side. The choice
    depends on the set of names and `seed` only, not on the order of `samples`.

    Raises:
        UserError: There are fewer than two to choose from, or none would be left to train on.
    """
    names = sorted({_unit(sample, split_by) for sample in samples})
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
    train = [sample for sample in samples if _unit(sample, split_by) not in validation]
    val = [sample for sample in samples if _unit(sample, split_by) in validation]
    return train, val


def _unit(sample: Entry, split_by: str) -> str:
    return sample.material if split_by == "material" else sample.name
