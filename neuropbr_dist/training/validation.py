"""Validation: the held-out samples, each once over all ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist

from neuropbr_dist.config import TransformConfig
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.device import shown, to_device
from neuropbr_dist.data.rendered.renderer import Renderer
from neuropbr_dist.monitor import Look, take_look
from neuropbr_dist.objectives import MetricSums, ReconstructionLoss
from neuropbr_dist.parallel import Network
from neuropbr_dist.parallel.sync_batch import average_running_statistics


@torch.no_grad()
def validate(
    g: Network,
    loader: Iterable[MicroBatch],
    transform: TransformConfig,
    reconstruction: ReconstructionLoss,
    device: torch.device,
    looks: int = 0,
    renderer: Renderer | None = None,
) -> tuple[MetricSums, list[Look]]:
    """Sums of metrics over all ranks' samples (the same on every rank), and this rank's first samples to look at.

    Args:
        loader: this rank's share; filler has weight 0.
        looks: how many samples to keep for a person, made small.
        renderer: see `to_device`.
    """
    average_running_statistics(g.module)
    g.module.eval()
    sums = MetricSums(reconstruction, device)
    kept: list[Look] = []
    for host in loader:
        batch = to_device(host, 1, transform, device, renderer=renderer)
        pred = g(batch.views)
        sums.update(pred, batch.maps, batch.weight, batch.relighting)
        for i in range(min(looks - len(kept), len(host.keys))):
            if host.weight[i] > 0:
                kept.append(take_look(host.keys[i], shown(batch.views[i], transform), pred[i], batch.maps[i]))
    if dist.is_initialized():
        dist.all_reduce(sums.tensor())
    g.module.train()
    return sums, kept
