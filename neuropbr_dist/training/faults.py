"""Faults of a run that trains: data that can't be read, and updates that aren't finite.

Non-finite updates are skipped on the device, noticed at log steps, and fatal after too many in a row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from neuropbr_dist.data.loader import Interrupted
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


class FaultWatch:
    """Keeps each step's flags on the device until the host looks.

    Args:
        limit: `training.max_skipped_steps`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._pending: list[tuple[int, str, Sequence[str], Tensor, dict[str, Tensor]]] = []
        self._in_row = {"generator": 0, "discriminator": 0}

    def note(self, step: int, keys: Sequence[str], result: GanStepResult) -> None:
        """Keep the flags of a step; `keys` are this rank's samples."""
        for part, update in (("generator", result.generator), ("discriminator", result.discriminator)):
            if update is not None:
                self._pending.append((step, part, keys, update.finite, result.losses))

    def collect(self, skipped: dict[str, int]) -> None:
        """Read the flags noted since the last call; add to `skipped`. Collective.

        Raises:
            UserError: on all ranks: `limit` updates of a network in a row were skipped.
        """
        pending, self._pending = self._pending, []
        updated = [bool(flags[3]) for flags in pending]  # the same on every rank
        bad = {
            step: (keys, bool(torch.stack(list(losses.values())).isfinite().all()))
            for (step, _, keys, _, losses), fine in zip(pending, updated, strict=True)
            if not fine
        }
        names = culprits(bad) if bad else {}
        for (step, part, *_), fine in zip(pending, updated, strict=True):
            if fine:
                self._in_row[part] = 0
                continue
            skipped[part] += 1
            self._in_row[part] += 1
            log.warning(
                f"step {step}: non-finite loss or gradient, {part} not updated (samples: {names[step]})"
            )
            if self._in_row[part] >= self.limit:
                raise UserError(
                    f"{self.limit} updates of the {part} in a row were not finite, the last at step {step}; "
                    "lower optimizer.g_lr / d_lr or training.grad_clip_norm, or check the samples named above "
                    "(limit: training.max_skipped_steps)"
                )


def culprits(steps: dict[int, tuple[Sequence[str], bool]]) -> dict[int, str]:
    """Return the samples to look at for each step, of all ranks. Collective.

    Args:
        steps: each with this rank's samples, and whether their losses were finite. Where all ranks' were, the
            gradients of any can have been at fault.
    """
    ranks, names = all_gather_object(steps), {}
    for step in steps:
        found = [rank[step] for rank in ranks]
        faulty = [keys for keys, sound in found if not sound] or [keys for keys, _ in found]
        names[step] = some(dict.fromkeys(key for own in faulty for key in own), MOST_NAMES)
    return names
