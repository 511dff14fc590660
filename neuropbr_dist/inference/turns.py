"""Predict a material in several orientations and take the mean: what one of them guesses wrong, others may not.

The surface, its lights and its cameras turn together, as `data.augment_rotations` and `data.augment_flips` turn training
samples, so a network is asked only for orientations that it was trained in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.config import TrainConfig
from neuropbr_dist.data.augment import Augmentation, turn_views
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.rectify import turn_cameras
from neuropbr_dist.objectives import NORMAL

ORDER = (0, 2, 5, 7, 4, 6, 1, 3)
"""Orientations in the order in which they are taken: each soon has its opposite beside it."""


def orientations(config: TrainConfig, turns: int) -> list[int]:
    """Return `turns` orientations that a run was trained in.

    Raises:
        UserError: it was trained in fewer.
    """
    known = Augmentation.of_run(config).orientations
    if not 1 <= turns <= len(known):
        raise UserError(
            f"--turns {turns}; allowed: 1 to {len(known)}, the orientations that the run's samples were trained in "
            f"(data.augment_flips = {config.data.augment_flips}, augment_rotations = {config.data.augment_rotations})"
        )
    return [orientation for orientation in ORDER if orientation in known][:turns]


def mean_of_turns(
    predicted: Callable[[Tensor, Tensor | None], Tensor],
    views: Tensor,
    cameras: Tensor | None,
    chosen: list[int],
) -> Tensor:
    """Return the mean of the maps that are predicted in the chosen orientations, normals of unit length.

    Args:
        predicted: views (..., 3, 3, S, S) and cameras (..., 3, 14) -> maps (..., 8, S, S).
    """
    if chosen == [0]:  # as it is: nothing to copy, and cameras to the bit
        return predicted(views, cameras)
    total: Tensor | None = None
    for orientation in chosen:
        turned = None if cameras is None else turn_cameras(cameras, orientation)
        maps = turned_back(predicted(turn_views(views, orientation).contiguous(), turned), orientation)
        total = maps if total is None else total + maps
    assert total is not None
    total = total / len(chosen)
    total[..., NORMAL, :, :] = F.normalize(total[..., NORMAL, :, :], dim=-3, eps=1e-6)
    return total


def turned_back(maps: Tensor, orientation: int) -> Tensor:
    """Return maps (..., 8, S, S) of a material in an orientation as those of the material as it was."""
    maps = torch.rot90(maps, -(orientation % 4), (-2, -1)).clone()
    x, y, _ = maps[..., NORMAL, :, :].clone().unbind(-3)
    for _ in range(orientation % 4):
        x, y = y, -x
    if orientation >= 4:
        maps, x, y = maps.flip(-1), -x.flip(-1), y.flip(-1)
    maps[..., NORMAL.start, :, :], maps[..., NORMAL.start + 1, :, :] = x, y
    return maps
