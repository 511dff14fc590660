"""Non-finite updates: skipped on the device, noticed at log steps, fatal after too many in a row."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from neuropbr_dist.errors import UserError
from neuropbr_dist.ranks import all_gather_object
from neuropbr_dist.training.step import StepReport

log = logging.getLogger(__name__)

MOST_NAMES = 32


class FaultWatch:
    """Keeps each step's flags on the device until the host looks.

    Args:
        limit: `training.max_skipped_steps`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._pending: list[tuple[int, str, Sequence[str], Tensor, Tensor]] = []
        self._in_row = {"generator": 0, "discriminator": 0}

    def note(self, step: int, keys: Sequence[str], report: StepReport) -> None:
        """Keep the flags of a step; `keys` are this rank's samples."""
        sound = torch.stack(list(report.losses.values())).isfinite().all()  # of this rank's samples
        for part, result in (("generator", report.generator), ("discriminator", report.discriminator)):
            if result is not None:
                self._pending.append((step, part, keys, result.finite, sound))

    def look(self, skipped: dict[str, int]) -> None:
        """Read the flags noted since the last look; add to `skipped`. Collective.

        Raises:
            UserError: on all ranks: `limit` updates of a network in a row were skipped.
        """
        pending, self._pending = self._pending, []
        bad = [flags for flags in pending if not flags[3].item()]  # the same on every rank
        names = culprits({step: (keys, bool(sound)) for step, _, keys, _, sound in bad}) if bad else {}
        for step, part, _, finite, _ in pending:
            if finite.item():
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
        keys = list(dict.fromkeys(key for own in faulty for key in own))
        names[step] = ", ".join(keys[:MOST_NAMES]) + (
            f" and {len(keys) - MOST_NAMES} more" * (len(keys) > MOST_NAMES)
        )
    return names
