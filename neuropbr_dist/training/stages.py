"""A run as its stages one after another: each a set-up, samples at its side, and its piece of the one order of samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from neuropbr_dist.cluster import Environment
from neuropbr_dist.config import Stage, TrainConfig, as_one_stage, check_size, stages_of, with_fields
from neuropbr_dist.config.stages import called
from neuropbr_dist.data.open import Samples, open_samples
from neuropbr_dist.data.order import SampleOrder, micro_batches
from neuropbr_dist.errors import UserError
from neuropbr_dist.models import size_multiple
from neuropbr_dist.training.setup import (
    SampleFacts,
    Setup,
    batch_of,
    check_discriminator,
    check_even_batch_norm,
    filled_in,
    set_up,
)
from neuropbr_dist.training.sharing import check_sharing, groups_of

OWN_NAMES = {
    "--set data.image_size=": "image_size = ",
    "data.image_size": "image_size",
    "training.global_batch_size": "global_batch_size",
    "training.batch_size": "batch_size",
    "training.sample_ranks": "sample_ranks",
}
"""Names in a stage of fields that a run of one stage has in `data` and `training`."""


@dataclass(frozen=True)
class RunStage:
    """One stage of a run."""

    number: int
    """Number of the stage, from 1."""
    wanted: Stage
    """The stage as configured: the side, batch and rate that were asked for."""
    setup: Setup
    """Choices of a run whose only stage this is."""
    samples: Samples
    """The samples at the stage's side."""
    order: SampleOrder
    """The run's order of samples up to the stage's end; batches are the stage's, and its last one is short."""

    @property
    def last(self) -> int:
        """Cursor at which it ends."""
        return self.order.total_samples


@dataclass(frozen=True)
class StagedRun:
    """All stages of a run, the first to the last; most runs have one."""

    cfg: TrainConfig
    """The whole run's, with nothing left open: it is saved with the run."""
    stages: tuple[RunStage, ...]

    def at(self, cursor: int) -> RunStage:
        """Return the stage of the sample at `cursor`; of the run's end, the last one."""
        return next((stage for stage in self.stages if cursor < stage.last), self.stages[-1])

    def after(self, stage: RunStage) -> RunStage | None:
        """Return the next stage, if there is one."""
        return self.stages[stage.number] if stage.number < len(self.stages) else None

    def begins(self, stage: RunStage) -> int:
        """Return the cursor at which a stage begins."""
        return self.stages[stage.number - 2].last if stage.number > 1 else 0

    @property
    def fingerprint(self) -> str:
        """Hash of the training set; a later stage may have another side, and another one at every start."""
        return self.stages[0].samples.fingerprint


def check_stages(cfg: TrainConfig, world: int) -> None:
    """Look at each stage as far as the configuration alone tells, before anything is opened.

    Raises:
        UserError: a side that the encoder or the discriminator can't take, a batch below the ranks, or samples
            that can't be shared.
    """
    if not cfg.training.stages:
        check_sharing(cfg.model, world, cfg.training.sample_ranks, cfg.data.image_size)
    for number, stage in enumerate(cfg.training.stages, 1):
        with naming_stage(cfg, number):
            check_sharing(cfg.model, world, stage.sample_ranks, stage.image_size)
            groups, batch = groups_of(world, stage.sample_ranks), batch_of(stage, world)
            if stage.image_size is not None:
                check_size(stage.image_size, size_multiple(cfg.model))
                check_discriminator(cfg.model, stage.image_size)
            micro_batches(batch, groups, stage.batch_size, stage.sample_ranks)
            check_even_batch_norm(as_one_stage(cfg, replace(stage, global_batch_size=batch)), groups)


@contextmanager
def naming_stage(cfg: TrainConfig, number: int) -> Iterator[None]:
    """Say in a UserError which stage it is about, where there are several; fields are called as a stage calls them."""
    try:
        yield
    except UserError as error:
        if not cfg.training.stages:
            raise
        said = str(error)
        for field, own in OWN_NAMES.items():
            said = said.replace(field, own)
        raise UserError(f"{called(cfg, number)}: {said}") from error


def open_run(cfg: TrainConfig) -> Samples:
    """Open and check the set that a run trains on, at one of its sides; `Samples.at` gives the others. Collective."""
    sides = [stage.image_size for stage in stages_of(cfg)]
    return open_samples(with_fields(cfg, data={"image_size": None if None in sides else sides[0]}))


def set_up_run(
    cfg: TrainConfig, env: Environment, device: torch.device, samples: Samples, room: int | None = None
) -> StagedRun:
    """Return every choice of a run, made; see `set_up`.

    Args:
        samples: as `open_run` gives them.

    Raises:
        UserError: see `set_up`; names the stage.
    """
    whole = filled_in(cfg, env, SampleFacts.of(samples))
    if cfg.training.stages:
        whole = with_fields(whole, data={"image_size": None})
    stages = []
    for number, stage in enumerate(stages_of(whole), 1):
        there = samples.at(stage.image_size or samples.source.size)
        with naming_stage(cfg, number):
            setup = set_up(as_one_stage(whole, stage), env, device, SampleFacts.of(there), room)
        t = setup.cfg.training
        order = SampleOrder(len(there.train), t.global_batch_size or 1, t.epochs, t.seed)
        stages.append(RunStage(number, stage, setup, there, order))
    return StagedRun(whole, tuple(stages))
