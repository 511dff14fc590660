"""Maps to numbers: losses and validation metrics, one value per sample. Plain torch."""

from neuropbr_dist.materials.channels import ALBEDO, MAP_SLICES, METALLIC, NORMAL, ROUGHNESS
from neuropbr_dist.objectives.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from neuropbr_dist.objectives.metrics import MetricSums
from neuropbr_dist.objectives.reconstruction import ReconstructionLoss
from neuropbr_dist.objectives.registry import load_custom_module, register_loss, registered_losses

__all__ = [
    "ALBEDO",
    "MAP_SLICES",
    "METALLIC",
    "NORMAL",
    "ROUGHNESS",
    "MetricSums",
    "ReconstructionLoss",
    "discriminator_loss",
    "feature_matching_loss",
    "generator_loss",
    "load_custom_module",
    "register_loss",
    "registered_losses",
]
