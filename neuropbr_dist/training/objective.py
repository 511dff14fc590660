"""The GAN's losses of one micro-batch, as this rank's part of the global batch's mean."""

from __future__ import annotations

from torch import Tensor

from neuropbr_dist.config import TrainConfig
from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.objectives import ReconstructionLoss, discriminator_loss, generator_loss
from neuropbr_dist.parallel.blocks import compiled
from neuropbr_dist.strip import Strip


class Objective:
    """Weights and kinds from the configuration; every loss comes back as a scalar sum over `weight`.

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
        self.sigmoid, self.smoothing = cfg.model.discriminator_use_sigmoid, cfg.loss.gan_label_smoothing

    def reconstruction(self, fake: Tensor, batch: DeviceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps (B, 8, H, W), predicted of a batch -> weighted total, unweighted terms (detached)."""
        total, terms = self.reconstruction_loss(fake, batch.maps, batch.relighting, self.strip)
        return (total * batch.weight).sum(), {
            name: (value * batch.weight).sum() for name, value in terms.items()
        }

    def generator(self, fake_logits: Tensor, weight: Tensor) -> Tensor:
        """Adversarial part of the generator's loss, before `w_gan`."""
        loss = generator_loss(fake_logits, self.kind, sigmoid=self.sigmoid, strip=self.strip)
        return (loss * weight).sum()

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor, weight: Tensor) -> Tensor:
        """The discriminator's whole loss."""
        loss = discriminator_loss(
            real_logits, fake_logits, self.kind, sigmoid=self.sigmoid, smoothing=self.smoothing,
            strip=self.strip,
        )  # fmt: skip
        return self.w_d * (loss * weight).sum()


def relight_key(cfg: TrainConfig) -> int | None:
    """Return the key of what the rendering loss looks at; None where it has no weight."""
    return cfg.training.seed if cfg.loss.w_render > 0 else None
