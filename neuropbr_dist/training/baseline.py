"""What one learns without looking at the views: the training set's mean maps."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.config import TrainConfig
from neuropbr_dist.data.open import Samples
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.objectives import MetricSums, ReconstructionLoss


def mean_maps(samples: Samples) -> Tensor:
    """Per-pixel mean of the training maps (8, H, W), normals renormalised."""
    total = torch.zeros(8, samples.source.size, samples.source.size)
    for entry in samples.train:
        total += target(samples, entry)[0]
    total /= len(samples.train)
    total[5:] = F.normalize(total[5:], dim=0)
    return total


def mean_maps_metrics(cfg: TrainConfig, samples: Samples) -> dict[str, float]:
    """Validation metrics of predicting the mean maps for every held-out sample."""
    mean = mean_maps(samples)
    sums = MetricSums(ReconstructionLoss(cfg.loss), "cpu")
    for entry in samples.val:
        sums.update(mean[None], target(samples, entry))
    return sums.result()


def target(samples: Samples, entry: object) -> Tensor:
    """An entry's true maps, float (1, 8, S, S) as the losses see them."""
    maps = torch.from_numpy(np.array(samples.source.maps(entry)))
    return decode_maps(maps[None])
