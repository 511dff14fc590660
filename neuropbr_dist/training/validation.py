"""Validation: the held-out samples, each once over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from neuropbr_dist.config import TransformConfig
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.device import decode_maps, normalise_views
from neuropbr_dist.objectives import MetricSums, ReconstructionLoss
from neuropbr_dist.parallel import Network
from neuropbr_dist.parallel.sync_batch import average_running_statistics


class Look(NamedTuple):
    """One sample to be shown."""

    key: str
    views: Tensor  # (3, 3, H, W) uint8
    pred: Tensor  # (8, H, W) float
    target: Tensor  # (8, H, W) float


@torch.no_grad()
def validate(
    g: Network,
    loader: Iterable[MicroBatch],
    transform: TransformConfig,
    reconstruction: ReconstructionLoss,
    device: torch.device,
    looks: int = 0,
) -> tuple[dict[str, float], list[Look]]:
    """Metrics over all ranks' samples (the same on every rank), and this rank's first samples to look at.

    Args:
        loader: this rank's share; filler has weight 0.
        looks: how many samples to keep for pictures.
    """
    average_running_statistics(g.module)
    g.module.eval()
    sums = MetricSums(reconstruction, device)
    kept: list[Look] = []
    for batch in loader:
        views = batch.views.to(device, non_blocking=True)
        target = decode_maps(batch.maps.to(device, non_blocking=True))
        pred = g(normalise_views(views, transform))
        sums.update(pred, target, batch.weight.to(device))
        for i in range(min(looks - len(kept), len(batch.keys))):
            if batch.weight[i] > 0:
                kept.append(Look(batch.keys[i], batch.views[i], pred[i].float().cpu(), target[i].cpu()))
    if dist.is_initialized():
        dist.all_reduce(sums.tensor())
    g.module.train()
    return sums.result(), kept
