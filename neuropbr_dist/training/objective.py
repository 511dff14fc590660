"""The GAN's losses of one micro-batch, as this rank's part of the global batch's mean."""

from __future__ import annotations

import torch
from torch import Tensor

from neuropbr_dist.config import TrainConfig
from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.models import mean_of_views
from neuropbr_dist.objectives import ReconstructionLoss, discriminator_loss, generator_loss
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

    def generator(self, fake_logits: Tensor, weight: Tensor) -> Tensor:
        """Return the adversarial part of the generator's loss, before `w_gan`: a scalar.

        Args:
            fake_logits: the discriminator's of generated maps, (B, ...).
            weight: (B,), 1 / samples in the global batch, or 0 for filler.
        """
        loss = generator_loss(fake_logits, self.kind, sigmoid=self.sigmoid, strip=self.strip)
        return (loss * weight).sum()

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor, weight: Tensor) -> Tensor:
        """Return the discriminator's whole loss, `w_discriminator` included: a scalar.

        Args:
            real_logits, fake_logits: of true and of generated maps, (B, ...).
            weight: as `generator`'s.
        """
        loss = discriminator_loss(
            real_logits, fake_logits, self.kind, sigmoid=self.sigmoid, smoothing=self.smoothing,
            strip=self.strip,
        )  # fmt: skip
        return self.w_d * (loss * weight).sum()


def relight_key(cfg: TrainConfig) -> int | None:
    """Return the key of what the rendering loss looks at; None where it has no weight."""
    return cfg.training.seed if cfg.loss.w_render > 0 else None
