"""Networks in plain PyTorch; nothing here knows how they are spread over devices."""

from neuropbr_dist.models.discriminator import Discriminator, judged_channels, mean_of_views, smallest_side
from neuropbr_dist.models.generator import Generator, encoder_norm, size_multiple, view_channels
from neuropbr_dist.models.pretrained import PretrainedUnavailable, load_backbone, pretrained_backbone

__all__ = [
    "Discriminator",
    "Generator",
    "PretrainedUnavailable",
    "encoder_norm",
    "judged_channels",
    "load_backbone",
    "mean_of_views",
    "pretrained_backbone",
    "size_multiple",
    "smallest_side",
    "view_channels",
]
