"""Non-finite updates: skipped on the device, noticed at log steps, fatal after too many in a row."""

from __future__ import annotations

import logging

import torch

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
        self._pending: list[tuple[int, list[str], list[tuple[str, torch.Tensor]]]] = []
        self._in_row = {"generator": 0, "discriminator": 0}

    def note(self, step: int, keys: list[str], report: StepReport) -> None:
        flags = [("generator", report.generator.finite)]
        if report.discriminator is not None:
            flags.append(("discriminator", report.discriminator.finite))
        self._pending.append((step, keys, flags))

    def look(self, skipped: dict[str, int]) -> None:
        """Read the flags noted since the last look; add to `skipped`.

        Raises:
            UserError: more than `limit` updates of a network in a row were skipped.
        """
        flat = [
            flag.reshape(()).to("cpu", non_blocking=False)
            for _, _, flags in self._pending
            for _, flag in flags
        ]
        values = iter(torch.stack(flat).tolist() if flat else [])
        pending, self._pending = self._pending, []
        for step, keys, flags in pending:
            for part, _ in flags:
                if next(values):
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
