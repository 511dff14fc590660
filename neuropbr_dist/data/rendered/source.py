"""Entries whose views are rendered: every material, so many times an epoch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.batch import Rendering
from neuropbr_dist.data.files.entries import CURRICULA
from neuropbr_dist.data.rendered import draws
from neuropbr_dist.data.rendered.changes import unchanged
from neuropbr_dist.data.rendered.materials import Materials
from neuropbr_dist.data.rendered.renderer import Renderer
from neuropbr_dist.data.sources import Source
from neuropbr_dist.data.split import Subset
from neuropbr_dist.materials.channels import quantise
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.materials.scene import BENCH

LEAST_OF_AN_EPOCH = 4000
"""Training samples of an epoch where `data.renders_per_epoch` leaves it open."""
ENOUGH_HELD_OUT = 64
"""Number of samples that validate a run, where an epoch shows that many of the held-out materials."""


class RenderedEntry(NamedTuple):
    """A material, the number of its repeat, and whether the scene is dirty."""

    name: str
    renders: str
    material: str
    number: int
    """The material's place in its set."""

    @property
    def key(self) -> str:
        return f"{self.renders}/{self.name}"


class RenderedEntries(Sequence[RenderedEntry]):
    """Material by material, repeat by repeat, clean before dirty; each is made when it is asked for."""

    def __init__(self, materials: Sequence[str], repeats: int, curriculum: int) -> None:
        self._materials, self._repeats, self._folders = materials, repeats, CURRICULA[curriculum]

    def __len__(self) -> int:
        return len(self._materials) * self._repeats * len(self._folders)

    def __getitem__(self, index: int) -> RenderedEntry:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        rest, folder = divmod(index, len(self._folders))
        number, repeat = divmod(rest, self._repeats)
        material = self._materials[number]
        return RenderedEntry(f"{material}#{repeat:03d}", self._folders[folder], material, number)

    def repeat_of(self, places: np.ndarray) -> np.ndarray:
        """Return the numbers of the repeats at `places`."""
        return places // len(self._folders) % self._repeats


class RenderedSource(Source):
    """Materials, each shown `repeats` times under another light, by other cameras.

    Args:
        repeats: in an epoch.
        curriculum: as `data.render_curriculum`.
        seed: key of the scenes.
        environments: panoramas that may light a scene, as `materials.environment` reads them; None: none.
        bench: share of scenes that are as on the built-in set's bench.
    """

    entries: RenderedEntries

    def __init__(
        self,
        materials: Materials,
        repeats: int,
        curriculum: int,
        seed: int,
        environments: Tensor | None = None,
        bench: float = BENCH,
    ) -> None:
        self.materials, self.size, self.seed = materials, materials.size, seed
        self.repeats, self.curriculum, self.environments = repeats, curriculum, environments
        self.bench = bench
        self.entries = RenderedEntries(materials.names, repeats, curriculum)
        self.stored_sides = materials.stored_sides

    def at(self, size: int) -> RenderedSource:
        return type(self)(
            self.materials.at(size), self.repeats, self.curriculum, self.seed, self.environments, self.bench
        )

    def scene(self, entry: RenderedEntry, epoch: int | None = None) -> draws.Scene:
        """Return the scene of an entry in an epoch; None: when it isn't trained on."""
        count = 0 if self.environments is None else len(self.environments)
        dirty = entry.renders == "dirty"
        return draws.scene(self.seed, epoch, entry.name, dirty=dirty, environments=count, bench=self.bench)

    def draw(
        self, entry: RenderedEntry, epoch: int, augmentation: Augmentation | None, count: int
    ) -> draws.Drawn:
        """Return what is random of an entry in an epoch.

        Args:
            augmentation: None: the entry isn't trained on; it has one scene then, and its material stays as it is.
            count: of the entries that a partner may be.
        """
        if augmentation is None:
            return draws.Drawn(self.scene(entry), unchanged())
        scene = self.scene(entry, epoch)
        row, partner = draws.changes_of(
            augmentation, epoch, entry.name, self.size, count, on_bench=scene.on_bench
        )
        return draws.Drawn(scene, row, partner)

    def maps_into(self, entry: RenderedEntry, out: np.ndarray) -> None:
        """Fill `out`, uint8 (8, S, S).

        Raises:
            UserError: the material can't be read.
        """
        self.materials.maps_into(entry.number, out)

    def maps(self, entry: RenderedEntry) -> np.ndarray:
        maps = np.empty((8, self.size, self.size), np.uint8)
        self.maps_into(entry, maps)
        return maps

    def cameras(self, entry: RenderedEntry) -> np.ndarray:
        """Return the cameras, (3, 14), of the scene that an entry has when it isn't trained on."""
        return self.scene(entry).cameras

    def load(self, entry: RenderedEntry) -> tuple[np.ndarray, np.ndarray]:
        """Return views of the scene that an entry has when it isn't trained on, rendered here, and the maps."""
        scene, maps = self.scene(entry), self.maps(entry)
        encoded, cameras, keys = (
            torch.from_numpy(part)[None] for part in (scene.encoded, scene.cameras, scene.keys)
        )
        rendering = Rendering(encoded, cameras, keys, dirty=entry.renders == "dirty")
        _, views = Renderer(self.environments)(decode_maps(torch.from_numpy(maps)[None]), None, rendering)
        return quantise(views[0].numpy()), maps


def cut_rendered(
    source: RenderedSource, held_out: Collection[str]
) -> tuple[Subset[RenderedEntry], Subset[RenderedEntry]]:
    """Return (train, validation): every repeat of the materials to train on, and as many of the others as are enough."""
    entries, names = source.entries, source.materials.names
    each = len(entries) // len(names)
    held = np.repeat(np.fromiter((name in held_out for name in names), bool, len(names)), each)
    shown = -(-ENOUGH_HELD_OUT // (len(held_out) * (each // source.repeats)))
    some = entries.repeat_of(np.arange(len(entries))) < shown
    return Subset(entries, np.flatnonzero(~held)), Subset(entries, np.flatnonzero(held & some))
