"""The device's half of a rendered sample: its material is changed, then seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neuropbr_dist.data.batch import Rendering
from neuropbr_dist.data.rendered.changes import change
from neuropbr_dist.materials.render import render


class Renderer:
    """Maps and scenes -> changed maps and their views.

    Args:
        environments: panoramas that light scenes, on the device; None: none.
    """

    def __init__(self, environments: Tensor | None = None) -> None:
        self.environments = environments
        self._change, self._render = change, render

    def compile(self, compiled: Callable) -> None:
        """Have what is done to whole pictures compiled.

        Args:
            compiled: a function -> the function compiled.
        """
        self._change, self._render = compiled(change), compiled(render)

    @torch.no_grad()
    def __call__(self, maps: Tensor, partners: Tensor | None, rendering: Rendering) -> tuple[Tensor, Tensor]:
        """Return changed maps, and views of them (B, 3, 3, S, S) in sRGB of [0, 1].

        Args:
            maps: (B, 8, S, S) as `decode_maps` gives them.
            partners: like `maps`; None: no sample has one.
            rendering: on the same device.
        """
        if rendering.changes is not None:
            maps = self._change(maps, rendering.changes, partners, rendering.parts)
        r, side = rendering, maps.shape[-1]
        return maps, self._render(maps, r.scenes, r.cameras, r.keys, side, self.environments, dirt=r.dirty)
