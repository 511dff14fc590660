"""One material to predict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Subject:
    """One material to predict, and what is known of it."""

    name: str
    """Name of the folder that the material's maps go to, where `--out-dir` asks for one."""
    title: str
    """Description of the material in a few words."""
    label: str
    """Description of the material and of where it is from, on one line."""
    views: Tensor
    """Three RGB views, uint8 (3, 3, S, S)."""
    maps: Tensor | None = None
    """The true maps, uint8 (8, S, S), where they are known."""
    cameras: Tensor | None = None
    """The views' cameras (3, 14), see `materials.plane.encode`; None for a model that takes views as they are."""
    remarks: tuple[str, ...] = ()
    """Sentences that a person should read before trusting its maps."""


def owned(pictures: np.ndarray) -> Tensor:
    """Return an array's copy as a tensor: cached samples are read-only memory maps."""
    return torch.from_numpy(np.array(pictures))
