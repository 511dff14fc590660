"""Networks in plain PyTorch; nothing here knows how they are spread over devices."""

from neuropbr_dist.models.discriminator import (
    Discriminator,
    Judgement,
    features_of,
    judged_channels,
    logits_of,
    mean_of_views,
    smallest_side,
)
from neuropbr_dist.models.generator import Generator, encoder_norm, size_multiple, view_channels
from neuropbr_dist.models.pretrained import PretrainedUnavailable, load_backbone, pretrained_backbone

__all__ = [
    "Discriminator",
    "Generator",
    "Judgement",
    "PretrainedUnavailable",
    "encoder_norm",
    "features_of",
    "judged_channels",
    "load_backbone",
    "logits_of",
    "mean_of_views",
    "pretrained_backbone",
    "size_multiple",
    "smallest_side",
    "view_channels",
]
