"""Networks in plain PyTorch; nothing here knows how they are spread over devices."""

from neuropbr_dist.models.discriminator import Discriminator, receptive_field
from neuropbr_dist.models.generator import Generator, encoder_norm, size_multiple

__all__ = ["Discriminator", "Generator", "encoder_norm", "receptive_field", "size_multiple"]
