"""Changes to training samples, keyed by (seed, epoch, sample): here flips and quarter turns of a whole one.

The scene moves as one: a mirrored or turned material, under equally mirrored or turned lights,
seen by equally mirrored or turned cameras. GGX shading knows no preferred direction in the
plane and no handedness, so the turned views are what a renderer would show of the turned maps;
nothing has to be relit, and a view's pixels stay where they were in relation to the maps'. What
changes is what a set may have in common: light from above comes from every side. So it is off
by default.

Pixels are moved, never resampled. A normal's X (right) and Y (up; OpenGL) turn with the picture;
on the encoded bytes this is exact: -n is 255 - v.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuropbr_dist.config import MATERIAL_CHANGES, TrainConfig
from neuropbr_dist.data.keyed import number
from neuropbr_dist.materials.channels import NORMAL

NORMAL_X, NORMAL_Y = NORMAL.start, NORMAL.start + 1


@dataclass(frozen=True)
class Augmentation:
    """Orientations in which training samples are shown, and how rendered ones are changed besides.

    An orientation is 0 to 7: modulo 4 the quarter turns, counter-clockwise; from 4 on mirrored
    left to right before them.
    """

    seed: int
    flips: bool
    """Mirror left to right and top to bottom, each in half of the cases."""
    rotations: bool
    """Turn by 0, 90, 180 or 270 degrees."""
    crop: float = 0.0
    """Share of samples that show a part of the material; like all that follows, of rendered samples only."""
    tint: float = 0.0
    """Logarithm of the largest change to the albedo's light: factors are from exp(-tint) to exp(tint)."""
    roughness_shift: float = 0.0
    """Largest change to the roughness, up or down; like what follows up to mixtures, of samples that aren't on the bench."""
    any_roughness: float = 0.0
    """Share of samples whose roughness has a level and a contrast that the material doesn't decide."""
    relief: float = 0.0
    """Logarithm of the largest change to slopes: factors are from exp(-relief) to exp(relief)."""
    other_relief: float = 0.0
    """Share of samples that have the normals of another material."""
    mixtures: float = 0.0
    """Share of samples that are mixed with another material."""

    @classmethod
    def of_run(cls, cfg: TrainConfig) -> Augmentation:
        """Return that of a run's training samples."""
        data = cfg.data
        changes = {name: getattr(data, name) for name in MATERIAL_CHANGES}
        return cls(cfg.training.seed, data.augment_flips, data.augment_rotations, **changes)

    @property
    def orientations(self) -> tuple[int, ...]:
        """Orientations that samples are shown in."""
        if self.flips and self.rotations:
            return tuple(range(8))
        if self.rotations:
            return 0, 1, 2, 3
        if self.flips:
            return 0, 4, 6, 2  # as it is, left to right, top to bottom, both
        return (0,)

    def orientation(self, epoch: int, key: str) -> int:
        """Return the orientation, 0 to 7, of a sample in an epoch, whatever rank, worker or order it is loaded in."""
        choices = self.orientations
        return choices[number(f"{self.seed} {epoch} {key}") % len(choices)]


def turn_views(views: Tensor, orientation: int) -> Tensor:
    """Return square pictures (..., H, W) in an orientation."""
    if orientation >= 4:
        views = views.flip(-1)
    return torch.rot90(views, orientation % 4, (-2, -1))


def turn_maps(maps: Tensor, orientation: int) -> Tensor:
    """Return maps, uint8 (8, H, W), in an orientation, with the normals that the turned surface has."""
    maps = turn_views(maps, orientation).clone()
    x, y = maps[NORMAL_X].clone(), maps[NORMAL_Y].clone()
    if orientation >= 4:
        x = 255 - x
    for _ in range(orientation % 4):
        x, y = 255 - y, x
    maps[NORMAL_X], maps[NORMAL_Y] = x, y
    return maps
