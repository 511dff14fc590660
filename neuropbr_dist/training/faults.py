"""Faults of a run that trains: data that can't be read, and updates that aren't finite.

Non-finite updates are skipped on the device, noticed at log steps, and fatal after too many in a row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from neuropbr_dist.data.workers import Interrupted
from neuropbr_dist.errors import UserError, some
from neuropbr_dist.ranks import all_gather_object
from neuropbr_dist.training.step import GanStepResult

log = logging.getLogger(__name__)

MOST_NAMES = 32


class Fault:
    """Fault of this rank's data or updates, if there is one. The ranks stop at their next boundary, and save."""

    error: UserError | None = None

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Keep what is wrong until the ranks have agreed to stop: what is trained is saved first."""
        try:
            yield
        except Interrupted:
            pass
        except UserError as error:
            self.error = error

    def anywhere(self) -> bool:
        """Return whether a rank has one. Collective."""
        return any(all_gather_object(self.error is not None))

    def check(self) -> None:
        """Raise this rank's, if it has one."""
        if self.error is not None:
            raise self.error


ARITHMETIC = (
    "its losses were finite, so go on from the save with training.kernels = false, training.compile = off or "
    "training.precision = fp32, to find whose gradient it is; or "
)


class Noted(NamedTuple):
    """One network's update of one step, as it is kept until the host reads it."""

    step: int
    part: str
    keys: Sequence[str]
    """Keys of this rank's samples."""
    finite: Tensor
    """Whether the update was made, on the device; the same on every rank."""
    losses: dict[str, Tensor]
    """Losses of this rank's samples, on the device."""

    @property
    def losses_are_finite(self) -> bool:
        return bool(torch.stack(list(self.losses.values())).isfinite().all())


class FaultWatch:
    """Keeps each step's flags on the device until the host looks.

    Args:
        limit: `training.max_skipped_steps`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._pending: list[Noted] = []
        self._in_row = {"generator": 0, "discriminator": 0}

    def note(self, step: int, keys: Sequence[str], result: GanStepResult) -> None:
        """Keep the flags of a step; `keys` are this rank's samples."""
        for part, update in (("generator", result.generator), ("discriminator", result.discriminator)):
            if update is not None:
                self._pending.append(Noted(step, part, keys, update.finite, result.losses))

    def collect(self, skipped: dict[str, int]) -> None:
        """Read the flags noted since the last call; add to `skipped`. Collective.

        Raises:
            UserError: on all ranks: `limit` updates of a network in a row were skipped.
        """
        pending, self._pending = self._pending, []
        made = [bool(noted.finite) for noted in pending]
        faulty = {noted.step: noted for noted, fine in zip(pending, made, strict=True) if not fine}
        found = culprits(faulty) if faulty else {}
        for noted, fine in zip(pending, made, strict=True):
            step, part = noted.step, noted.part
            if fine:
                self._in_row[part] = 0
                continue
            skipped[part] += 1
            self._in_row[part] += 1
            what = "loss" if found[step].in_losses else "gradient of finite losses"
            log.warning(
                f"step {step}: non-finite {what}, {part} not updated (samples: {found[step].samples})"
            )
            if self._in_row[part] >= self.limit:
                first = "" if found[step].in_losses else ARITHMETIC
                raise UserError(
                    f"{self.limit} updates of the {part} in a row were not finite, the last at step {step}; {first}"
                    "lower optimizer.g_lr / d_lr or training.grad_clip_norm, or check the samples named above "
                    "(limit: training.max_skipped_steps)"
                )


class Culprit(NamedTuple):
    """What to look at of a step whose update wasn't finite."""

    in_losses: bool
    """Whether a rank's losses were at fault. Where none were, the gradients of any can have been."""
    samples: str


def culprits(faulty: dict[int, Noted]) -> dict[int, Culprit]:
    """Return what to look at for each step, of all ranks. Collective.

    Args:
        faulty: this rank's part of each step whose update wasn't finite.
    """
    own = {step: (noted.keys, noted.losses_are_finite) for step, noted in faulty.items()}
    ranks, found = all_gather_object(own), {}
    for step in own:
        parts = [rank[step] for rank in ranks]
        at_fault = [keys for keys, sound in parts if not sound]
        keys = dict.fromkeys(key for keys in at_fault or [keys for keys, _ in parts] for key in keys)
        found[step] = Culprit(bool(at_fault), some(keys, MOST_NAMES))
    return found
