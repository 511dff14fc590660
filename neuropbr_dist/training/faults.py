"""Non-finite updates: skipped on the device, noticed at log steps, fatal after too many in a row."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

from neuropbr_dist.errors import UserError
from neuropbr_dist.training.step import StepReport

log = logging.getLogger(__name__)


class FaultWatch:
    """Keeps each step's flags on the device until the host looks.

    Args:
        limit: `training.max_skipped_steps`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._pending: list[tuple[int, str, Sequence[str], Tensor]] = []
        self._in_row = {"generator": 0, "discriminator": 0}

    def note(self, step: int, keys: Sequence[str], report: StepReport) -> None:
        """Keep the flags of a step; `keys` are this rank's samples."""
        for part, result in (("generator", report.generator), ("discriminator", report.discriminator)):
            if result is not None:
                self._pending.append((step, part, keys, result.finite))

    def look(self, skipped: dict[str, int]) -> None:
        """Read the flags noted since the last look; add to `skipped`.

        Raises:
            UserError: `limit` updates of a network in a row were skipped.
        """
        pending, self._pending = self._pending, []
        for step, part, keys, finite in pending:
            if finite.item():
                self._in_row[part] = 0
                continue
            skipped[part] += 1
            self._in_row[part] += 1
            log.warning(
                f"step {step}: non-finite loss or gradient, {part} not updated "
                f"(this rank's samples: {', '.join(keys)})"
            )
            if self._in_row[part] >= self.limit:
                raise UserError(
                    f"{self.limit} updates of the {part} in a row were not finite, the last at step {step}; "
                    "lower optimizer.g_lr / d_lr or training.grad_clip_norm, or check the samples named above "
                    "(limit: training.max_skipped_steps)"
                )
