"""A run's stages: what may stand in `training.stages`, and what one of them is as a run of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from neuropbr_dist.config.frozen import with_fields
from neuropbr_dist.config.schema import DataConfig, Stage, TrainConfig, TrainingConfig
from neuropbr_dist.errors import UserError

ONE_STAGE = (
    "data.image_size", "training.batch_size", "training.global_batch_size", "training.sample_ranks",
)  # fmt: skip
"""Fields that each stage has of its own."""


def stages_of(cfg: TrainConfig) -> list[Stage]:
    """Return `training.stages`; of a run that names none, the one stage that it is."""
    t = cfg.training
    whole = Stage(
        until_epoch=t.epochs, image_size=cfg.data.image_size, global_batch_size=t.global_batch_size,
        batch_size=t.batch_size, sample_ranks=t.sample_ranks,
    )  # fmt: skip
    return list(t.stages) or [whole]


def as_one_stage(cfg: TrainConfig, stage: Stage) -> TrainConfig:
    """Return the configuration of a run whose only stage is `stage`: it ends where the stage does."""
    training: dict[str, Any] = {
        "epochs": stage.until_epoch, "batch_size": stage.batch_size,
        "global_batch_size": stage.global_batch_size, "sample_ranks": stage.sample_ranks, "stages": [],
    }  # fmt: skip
    return with_fields(cfg, training=training, data={"image_size": stage.image_size})


def called(cfg: TrainConfig, number: int) -> str:
    """Return what a message calls stage `number`, counted from 1, of a run that has stages."""
    return f"training.stages, stage {number} ({side_of(stages_of(cfg)[number - 1])})"


def side_of(stage: Stage) -> str:
    """Return a stage's side for a person."""
    return "the set's own side" if stage.image_size is None else f"{stage.image_size} px"


def settle_stages(cfg: TrainConfig) -> None:
    """Check `training.stages` and let `training.epochs` follow from it. In place.

    Raises:
        UserError: fields of a single stage beside it, edges out of order, or what no stage can have.
    """
    t = cfg.training
    if not t.stages:
        return
    check_nothing_beside(cfg)
    check_edges(t.stages)
    last = t.stages[-1].until_epoch
    if t.epochs not in (last, TrainingConfig().epochs):
        raise UserError(
            f"training.epochs = {t.epochs}, but training.stages end at epoch {last}; leave training.epochs out "
            "(--epochs scales the stages' edges)"
        )
    t.epochs = last


def check_nothing_beside(cfg: TrainConfig) -> None:
    """Raise a UserError where a field that each stage has of its own is set for the whole run as well."""
    given, unset = (
        {f"{part}.{name}": getattr(getattr(of, part), name) for part, name in map(_split, ONE_STAGE)}
        for of in (cfg, TrainConfig())
    )
    for field, value in given.items():
        if value != unset[field]:
            raise beside(field, f"{field} = {value}")


def beside(field: str, said: str) -> UserError:
    """Return the error of a single stage's field beside `training.stages`; `said` is how it is set."""
    return UserError(
        f"{said} beside training.stages: each stage has its own {_split(field)[1]}; leave it out, or have one stage: "
        f"--set training.stages=[], and name training.epochs and what it needs of {', '.join(ONE_STAGE)}"
    )


def _split(field: str) -> tuple[str, str]:
    part, _, name = field.partition(".")
    return part, name


def check_edges(stages: Sequence[Stage]) -> None:
    """Raise a UserError for stages that overlap or are out of order."""
    for number, (before, stage) in enumerate(pairwise(stages), 2):
        if stage.until_epoch <= before.until_epoch:
            raise UserError(
                f"training.stages, stage {number}: until_epoch = {stage.until_epoch}, but stage {number - 1} ends at "
                f"epoch {before.until_epoch}; edges must rise"
            )


def scaled(stages: Sequence[Stage], epochs: int) -> list[Stage]:
    """Return the stages with their edges moved in proportion, so that the last one ends at `epochs`.

    Raises:
        UserError: a stage would be left without an epoch.
    """
    check_edges(stages)
    last = stages[-1].until_epoch
    moved = [replace(s, until_epoch=max(1, round(s.until_epoch * epochs / last))) for s in stages]
    if any(b.until_epoch <= a.until_epoch for a, b in pairwise(moved)):
        raise UserError(
            f"training.epochs (--epochs) = {epochs}: too few for the {len(stages)} stages of training.stages, whose edges "
            f"are {', '.join(str(s.until_epoch) for s in stages)}"
        )
    return moved


def forget_one_stage(cfg: TrainConfig) -> None:
    """Give the fields that `training.stages` takes the place of their defaults again. In place."""
    cfg.data.image_size = DataConfig().image_size
    plain = TrainingConfig()
    for name in ("batch_size", "global_batch_size", "sample_ranks", "epochs"):
        setattr(cfg.training, name, getattr(plain, name))
