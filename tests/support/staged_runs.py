"""A tiny run in two stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.train_runs import SETTINGS, run

STAGES = [
    {"until_epoch": 2, "image_size": 16, "global_batch_size": 4, "batch_size": 2},
    {"until_epoch": 4, "image_size": 32, "global_batch_size": 3, "batch_size": 1, "lr_scale": 0.5},
]
"""Of five training samples: steps of 4, 4, 2, then of 3, 3, 3, 1."""
TAKEN = [4, 4, 2, 3, 3, 3, 1]
ONE_STAGE = ("training.batch_size", "training.global_batch_size", "training.epochs")
FIELDS = {
    "training.stages": STAGES, "training.log_samples": True, "optimizer.scheduler": "plateau", "optimizer.patience": 0,
}  # fmt: skip
"""A plateau's factor falls at once where a validation is no better."""


def staged(folder: Path, *words: str, begin=run, **others):
    """A tiny run in two stages; `tiny_words` names batch and epochs of a whole run, which stages do without."""
    fields = {name.replace(".", "__"): value for name, value in FIELDS.items()} | others
    with pytest.MonkeyPatch.context() as patch:
        for name in ONE_STAGE:
            patch.delitem(SETTINGS, name)
        return begin(folder, *words, **fields)
