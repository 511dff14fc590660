"""Validation: the held-out samples, each once over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from neuropbr_dist.config import TransformConfig
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.device import shown, to_device
from neuropbr_dist.data.rendered.renderer import Renderer
from neuropbr_dist.monitor import Look, take_look
from neuropbr_dist.objectives import MetricSums, ReconstructionLoss
from neuropbr_dist.objectives.perceptual import Perceptual
from neuropbr_dist.parallel import Network
from neuropbr_dist.parallel.sync_batch import average_running_statistics


class Validation(NamedTuple):
    """What a pass over the held-out samples comes to."""

    sums: MetricSums
    """Over all ranks' samples; the same on every rank."""
    baseline: MetricSums | None
    """The same of mean maps, if they were asked for."""
    looks: list[Look]
    """This rank's first samples, made small for a person."""


@torch.no_grad()
def validate(
    g: Network,
    loader: Iterable[MicroBatch],
    transform: TransformConfig,
    reconstruction: ReconstructionLoss,
    device: torch.device,
    looks: int = 0,
    renderer: Renderer | None = None,
    perceptual: Perceptual | None = None,
    mean: Tensor | None = None,
) -> Validation:
    """Predict all held-out samples, each once over all ranks, and compare.

    Args:
        loader: this rank's share; filler has weight 0.
        looks: how many samples to keep.
        renderer: see `to_device`.
        perceptual: gives LPIPS; None: it is left out.
        mean: (8, 1, 1) maps to be compared as well, as if they were predicted of every sample.
    """
    average_running_statistics(g.module)
    g.module.eval()
    sums = MetricSums(reconstruction, device, perceptual)
    baseline = None if mean is None else MetricSums(reconstruction, device, perceptual)
    kept: list[Look] = []
    for host in loader:
        batch = to_device(host, 1, transform, device, renderer=renderer)
        pred = g(batch.views)
        sums.update(pred, batch.maps, batch.weight, batch.relighting)
        if baseline is not None and mean is not None:
            guess = mean.to(batch.maps).expand_as(batch.maps)
            baseline.update(guess, batch.maps, batch.weight, batch.relighting)
        for i in range(min(looks - len(kept), len(host.keys))):
            if host.weight[i] > 0:
                kept.append(take_look(host.keys[i], shown(batch.views[i], transform), pred[i], batch.maps[i]))
    if dist.is_initialized():
        for found in (sums, baseline):
            if found is not None:
                dist.all_reduce(found.tensor())
    g.module.train()
    return Validation(sums, baseline, kept)
