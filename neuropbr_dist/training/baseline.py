"""Baseline of what one gets without looking at the views: the training set's mean albedo, roughness and
metallic, and flat normals."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from neuropbr_dist.config import TrainConfig
from neuropbr_dist.data.open import Samples
from neuropbr_dist.data.sources import Entry, Source
from neuropbr_dist.materials.channels import NORMAL, decode
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.objectives import MetricSums, ReconstructionLoss
from neuropbr_dist.ranks import all_gather_object, on_each_rank, rank, world_size

NAME = "mean_maps"
"""Name that the baseline's metrics are logged under."""
MOST_SAMPLES, THREADS = 64, 8
"""Samples of the training set, evenly chosen, that the means are taken of (it may have a million), and
threads that read them."""


def mean_maps(source: Source, train: Sequence[Entry]) -> Tensor:
    """Return means over the training maps, float32 (8, 1, 1) as a network would predict them. Collective."""
    count = len(train)
    places = np.unique(np.linspace(0, count - 1, min(count, MOST_SAMPLES)).round().astype(int))

    def mean(place: int) -> np.ndarray:
        maps = source.maps(train[int(place)])
        return maps.reshape(8, -1).mean(1, dtype=np.float64)

    def own() -> list[np.ndarray]:
        with ThreadPoolExecutor(THREADS) as pool:  # decoders let go of the interpreter's lock
            return list(pool.map(mean, places[rank() :: world_size()]))

    found = [each for means in all_gather_object(on_each_rank(own)) for each in means]
    means = torch.from_numpy(decode(np.mean(found, 0))).float()
    means[NORMAL] = torch.tensor([0.0, 0.0, 1.0])
    return means[:, None, None]


def mean_maps_metrics(cfg: TrainConfig, samples: Samples) -> dict[str, float]:
    """Return validation metrics of predicting them for every held-out sample. For one process."""
    mean = mean_maps(samples.source, samples.train)
    sums = MetricSums(ReconstructionLoss(replace(cfg.loss, w_render=0.0)), "cpu")
    for entry in samples.val:
        maps = decode_maps(torch.from_numpy(np.array(samples.source.maps(entry)))[None])
        sums.update(mean.expand_as(maps), maps)
    return sums.result()
