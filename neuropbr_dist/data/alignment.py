"""Choice of a sample's cameras that the device gets, where views are rectified (`model.align = plane`).

In training some are changed on purpose, keyed by (seed, epoch, sample), so that rank, worker and order don't matter:
the network is to know views that are missing, cameras that are a little off, and planes that don't repeat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neuropbr_dist.config import TrainConfig
from neuropbr_dist.data.keyed import uniforms
from neuropbr_dist.materials.plane import CONFIDENCE, MATRIX, WRAP

Encoded = npt.NDArray[np.float32]
"""(…, 14), see `materials.plane.encode`."""

WRAP_IGNORED = 0.5
"""Share of the training samples whose plane isn't repeated, so that the network knows masks before a photo comes."""

EXACT = 0.5
"""Share of the training samples whose views `data.camera_jitter` leaves where they are. Were all shifted, hardly one would be
seen whose three views agree, and agreeing views, which are the rule, would be read worse (`2026-11-30-jitter-small.md`)."""


def known(cameras: Encoded, min_confidence: float) -> npt.NDArray[np.bool_]:
    """Return which cameras (…) count: those that aren't missing and have this confidence or more."""
    return (cameras[..., MATRIX] != 0).any(-1) & (cameras[..., CONFIDENCE] >= min_confidence)


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Changes to a sample's cameras on their way to the device.

    Args:
        min_confidence: a camera below it counts as missing.
        seed: key of all that follows.
        ignore_wrap: share of samples whose plane isn't repeated although it may be.
        views: how many are shown, the first that there are; the others count as missing.
        drop_views: share of samples, of those with two views or more, that lose one, or all but one, equally often.
        jitter: how far a view is shifted at most, as a share of its side.
        exact: share of samples of which no view is.
    """

    min_confidence: float
    seed: int = 0
    ignore_wrap: float = 0.0
    views: int = 3
    drop_views: float = 0.0
    jitter: float = 0.0
    exact: float = 0.0

    @classmethod
    def of_run(cls, cfg: TrainConfig, *, training: bool) -> Alignment | None:
        """Return that of a run's samples; None where it takes views as they are.

        Args:
            training: those that are trained on; nothing is changed of the others.
        """
        if cfg.model.align != "plane":
            return None
        data = cfg.data
        if not training:
            return cls(min_confidence=data.min_confidence, views=data.views)
        return cls(
            min_confidence=data.min_confidence, seed=cfg.training.seed, ignore_wrap=WRAP_IGNORED,
            views=data.views, drop_views=data.drop_views, jitter=data.camera_jitter, exact=EXACT,
        )  # fmt: skip

    def of(self, cameras: Encoded, epoch: int, key: str) -> Encoded:
        """Return the cameras (3, 14) of sample `key` as they go to the device in an epoch; zeros for missing ones."""
        there = known(cameras, self.min_confidence)
        there &= there.cumsum() <= self.views
        draws = uniforms(f"{self.seed} {epoch} {key} cameras")
        wrap_ignored, loses_views = next(draws) < self.ignore_wrap, next(draws) < self.drop_views
        which, views = next(draws), np.flatnonzero(there)
        if loses_views and len(views) > 1:
            stays_alone, one = divmod(int(which * 2 * len(views)), len(views))
            if stays_alone:
                there[:] = False
            there[views[one]] = stays_alone
        found = np.where(there[:, None], cameras, np.float32(0))
        if wrap_ignored:
            found[:, WRAP] = 0
        exact = self.exact > 0 and next(draws) < self.exact
        if self.jitter and not exact:
            for camera in found:
                angle, radius = 2 * math.pi * next(draws), self.jitter * math.sqrt(next(draws))
                shift(camera, radius * math.cos(angle), radius * math.sin(angle))
        return found


def shift(camera: Encoded, u: float, v: float) -> None:
    """Let an encoded camera (14,) see everything at (u, v) from where it sees it, in picture coordinates. In place."""
    rows = camera[MATRIX].reshape(3, 3)
    rows[0] += np.float32(u) * rows[2]
    rows[1] += np.float32(v) * rows[2]
