"""Random draws of a rendered sample, keyed by (seed, epoch, material, repeat) and made on the host.

Every rank, worker, micro-batch and resume shows the same picture. Held-out materials have a scene that no epoch changes.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import NamedTuple

import numpy as np

from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.keyed import generator, number, uniforms
from neuropbr_dist.data.rendered import changes
from neuropbr_dist.materials.plane import WRAP, encode
from neuropbr_dist.materials.scene import encode_scene, random_scene


class Scene(NamedTuple):
    """Surroundings of a sample's material, and the cameras that look at it."""

    encoded: np.ndarray
    """(3, SCENE) float32."""
    cameras: np.ndarray
    """(3, 14) float32, the true ones, see `materials.plane.encode`; the plane repeats."""
    keys: np.ndarray
    """(3,) int64, of the noise in each pixel."""
    on_bench: bool
    """Whether it is as on the built-in set's bench."""


class Drawn(NamedTuple):
    """All that is random of a sample."""

    scene: Scene
    changes: changes.Row
    """Changes to its material, see `changes`."""
    partner: int | None = None
    """Index of the entry that it is mixed with, or whose relief it has; None: there is none."""

    @property
    def shows_a_part(self) -> bool:
        """Whether what is seen is a part of the material, which doesn't repeat."""
        return bool(self.changes[changes.PART] < 1)

    @property
    def cameras(self) -> np.ndarray:
        """The true cameras, (3, 14) float32, of what is seen."""
        cameras = self.scene.cameras.copy()
        if self.shows_a_part:
            cameras[:, WRAP] = 0
        return cameras


def scene(seed: int, epoch: int | None, name: str, *, dirty: bool, environments: int, bench: float) -> Scene:
    """Return the scene of sample `name`; clean and dirty ones share cameras and light.

    Args:
        epoch: None: the one scene that the sample has when it isn't trained on.
        environments: how many panoramas there are to choose from.
        bench: share of scenes that are as on the built-in set's bench.
    """
    key = f"{seed} {'held out' if epoch is None else epoch} {name}"
    drawn = random_scene(generator(f"{key} scene"), dirty=dirty, environments=environments, bench=bench)
    cameras = [encode(camera.on_plane(), wrap=True) for camera in drawn.cameras]
    keys = [number(f"{key} noise {view}") >> 1 for view in range(len(cameras))]
    on_bench = any(light.legacy for light in drawn.lighting)
    return Scene(encode_scene(drawn), np.stack(cameras), np.array(keys, np.int64), on_bench)


def changes_of(
    augmentation: Augmentation, epoch: int, name: str, side: int, count: int, *, on_bench: bool
) -> tuple[changes.Row, int | None]:
    """Return how the material of sample `name` is changed in an epoch, see `changes`, and the index of its partner.

    Args:
        side: of its maps in pixels.
        count: of the entries that a partner may be.
        on_bench: whether it is seen there. It keeps its relief and its roughness then: that light seldom shows how rough a
            material is, and what stands there is one of those that are learnt from.
    """
    relief_of = None if on_bench else other_relief(augmentation, epoch, name, count)
    mixed_with = partner(augmentation, epoch, name, count) if relief_of is None else None
    row, draws = changes.unchanged(), uniforms(f"{augmentation.seed} {epoch} {name} changes")
    down, right = int(next(draws) * side), int(next(draws) * side)
    row[changes.PLACE] = changes.place(augmentation.orientation(epoch, name), down, right, side)
    cut, part = next(draws), next(draws)
    if cut < augmentation.crop:
        row[changes.PART] = changes.SMALLEST_PART + (1 - changes.SMALLEST_PART) * part
    row[changes.TINT] = [math.exp(augmentation.tint * (2 * next(draws) - 1)) for _ in range(3)]
    rougher = augmentation.roughness_shift * (2 * next(draws) - 1)
    if not on_bench:
        row[changes.ROUGHER] = rougher
        draw_finish(row, augmentation, f"{augmentation.seed} {epoch} {name}")
    if relief_of is not None:
        row[changes.OTHER_RELIEF] = 1
    if mixed_with is not None:
        row[changes.MASK], row[changes.WAVES] = changes.mask(draws)
    return row, relief_of if mixed_with is None else mixed_with


def draw_finish(row: changes.Row, augmentation: Augmentation, key: str) -> None:
    """Draw another height of the relief, and another roughness, into `row`."""
    # By keys of their own: the draws beside them stay what they were before there was either.
    steeper = next(uniforms(f"{key} relief"))
    row[changes.RELIEF] = math.exp(augmentation.relief * (2 * steeper - 1))
    free, level, contrast = islice(uniforms(f"{key} roughness"), 3)
    if free < augmentation.any_roughness:
        row[changes.LEVEL] = changes.SMOOTHEST + (changes.ROUGHEST - changes.SMOOTHEST) * level
        row[changes.CONTRAST] = changes.MOST_CONTRAST * (2 * contrast - 1)


def other_relief(augmentation: Augmentation, epoch: int, name: str, count: int) -> int | None:
    """Return which of `count` entries has the relief that sample `name` shows in an epoch, or None: its own."""
    draws = uniforms(f"{augmentation.seed} {epoch} {name} other relief")
    return int(next(draws) * count) if next(draws) < augmentation.other_relief else None


def partner(augmentation: Augmentation, epoch: int, name: str, count: int) -> int | None:
    """Return which of `count` entries sample `name` is mixed with in an epoch, or None: with none."""
    draws = uniforms(f"{augmentation.seed} {epoch} {name} partner")
    return int(next(draws) * count) if next(draws) < augmentation.mixtures else None
