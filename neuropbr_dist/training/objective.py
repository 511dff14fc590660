"""The GAN's losses of one micro-batch, as this rank's part of the global batch's mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuropbr_dist.config import TrainConfig
from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.models import Judgement, features_of, logits_of, mean_of_views
from neuropbr_dist.objectives import (
    ReconstructionLoss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from neuropbr_dist.parallel.blocks import compiled
from neuropbr_dist.strip import Strip


class Objective:
    """Losses by the configuration's weights and kinds; each comes back as a scalar, the sum weighted by `weight`.

    Args:
        compile_blocks: compile what the reconstruction loss does to whole pictures.
        strip: this rank's of the samples that it shares, whose part of every loss comes back; None: they are whole.
    """

    def __init__(self, cfg: TrainConfig, compile_blocks: bool = False, strip: Strip | None = None) -> None:
        self.strip = strip
        self.reconstruction_loss = ReconstructionLoss(cfg.loss)
        if compile_blocks:
            self.reconstruction_loss.compile(compiled)
        self.relight = relight_key(cfg)
        self.kind, self.w_gan, self.w_d = cfg.loss.gan_loss_type, cfg.loss.w_gan, cfg.loss.w_discriminator
        self.w_feature_matching, self.feature_matching = cfg.loss.w_feature_matching, feature_matching_loss
        self.judges_views = cfg.model.discriminator_input == "maps_and_views"
        self.sigmoid, self.smoothing = cfg.model.discriminator_use_sigmoid, cfg.loss.gan_label_smoothing

    def reconstruction(self, fake: Tensor, batch: DeviceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted total of predicted maps (B, 8, H, W), and the unweighted terms, detached, by name.

        All are scalars, sums weighted by `batch.weight`.
        """
        total, terms = self.reconstruction_loss(fake, batch.maps, batch.relighting, self.strip)
        return (total * batch.weight).sum(), {
            name: (value * batch.weight).sum() for name, value in terms.items()
        }

    def judged(self, maps: Tensor, batch: DeviceBatch) -> Tensor:
        """Return what the discriminator takes of true or predicted maps (B, 8, H, W) of a batch, (B, 8 or 11, H, W)."""
        if not self.judges_views:
            return maps
        return torch.cat([maps, mean_of_views(batch.views).to(maps.dtype)], dim=1)

    def generator(
        self, fake: Judgement, true_features: Sequence[Tensor], weight: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted total of what the discriminator adds to the generator's loss, and the unweighted terms,
        detached, by name.

        All are scalars, sums weighted by `weight`.

        Args:
            fake: the discriminator's output for generated maps.
            true_features: its features of the true ones, (B, C, h, w) each; only needed where they have a weight.
            weight: (B,), 1 / samples in the global batch, or 0 for filler.
        """
        loss = generator_loss(logits_of(fake), self.kind, sigmoid=self.sigmoid, strip=self.strip)
        adversarial = (loss * weight).sum()
        total, terms = self.w_gan * adversarial, {"G_gan_loss": adversarial.detach()}
        if self.w_feature_matching > 0:
            matching = (self.feature_matching(features_of(fake), true_features, self.strip) * weight).sum()
            total = total + self.w_feature_matching * matching
            terms["G_feature_matching"] = matching.detach()
        return total, terms

    def discriminator(self, real: Judgement, fake: Judgement, weight: Tensor) -> Tensor:
        """Return the discriminator's whole loss, `w_discriminator` included: a scalar.

        Args:
            real, fake: its outputs for true and for generated maps.
            weight: as `generator`'s.
        """
        loss = discriminator_loss(
            logits_of(real), logits_of(fake), self.kind, sigmoid=self.sigmoid, smoothing=self.smoothing,
            strip=self.strip,
        )  # fmt: skip
        return self.w_d * (loss * weight).sum()


def relight_key(cfg: TrainConfig) -> int | None:
    """Return the key of what the rendering loss looks at; None where it has no weight."""
    return cfg.training.seed if cfg.loss.w_render > 0 else None
