"""PatchGAN discriminator (Isola et al. 2017) with a chosen number of layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuropbr_dist.config import ModelConfig
from neuropbr_dist.kernels.merge import merged
from neuropbr_dist.models.conv import ConvChain, FusedConv2d, SpectralConv2d
from neuropbr_dist.models.encoder import RGB, mask_of
from neuropbr_dist.models.norm import norm_factory

MAP_CHANNELS = 8

Judgement = Tensor | tuple[Tensor, ...]
"""A discriminator's output: patch logits (B, 1, H', W'); or a tuple of them and its features, each block's output
(B, C, h, w)."""


def logits_of(judgement: Judgement) -> Tensor:
    """Return the patch logits (B, 1, H', W')."""
    return judgement[0] if isinstance(judgement, tuple) else judgement


def features_of(judgement: Judgement) -> tuple[Tensor, ...]:
    """Return the blocks' outputs (B, C, h, w), the first block's first; () where none were handed out."""
    return judgement[1:] if isinstance(judgement, tuple) else ()


def judged_channels(config: ModelConfig) -> int:
    """Return the number of channels that the discriminator takes."""
    return MAP_CHANNELS + (RGB if config.discriminator_input == "maps_and_views" else 0)


def mean_of_views(views: Tensor) -> Tensor:
    """Return the mean (B, 3, H, W) of the views that show a place; 0 where none does.

    Args:
        views: (B, 3, 7, H, W), rectified: RGB, a mask, a direction.
    """
    pictures = views.flatten(0, 1)
    mask = mask_of(pictures)
    assert mask is not None  # `model.align = plane` gives each view one
    (mean,) = merged(pictures[:, :RGB], mask, "mean")
    return mean


def smallest_side(n_layers: int) -> int:
    """Return the side in pixels below which no logit comes out: backwards from one logit, padding counted."""
    side = 1
    for stride in (1, 1, *[2] * n_layers):
        side = (side - 1) * stride + 4 - 2
    return side


class Discriminator(nn.Module):
    """Maps (B, 8, H, W), with the views' mean (B, 11, H, W), -> patch logits (B, 1, H', W').

    Args:
        with_features: hand out each block's output as well (`Judgement`).
    """

    def __init__(self, config: ModelConfig, with_features: bool = False) -> None:
        super().__init__()
        self.with_features = with_features
        ndf, layers, norm = config.discriminator_ndf, config.discriminator_n_layers, norm_factory(config.norm)
        spectral = config.discriminator_norm == "spectral"
        conv2d = SpectralConv2d if spectral else FusedConv2d
        self.blocks = nn.ModuleList([ConvChain(conv2d(judged_channels(config), ndf, 4, 2, 1), leaky())])
        width = ndf
        for i in range(1, layers + 1):
            out = ndf * min(2**i, 8)
            stride = 2 if i < layers else 1
            conv = conv2d(width, out, 4, stride, 1, bias=spectral)
            self.blocks.append(ConvChain(conv, *([] if spectral else [norm(out)]), leaky()))
            width = out
        last: list[nn.Module] = [conv2d(width, 1, 4, 1, 1)]
        self.output = nn.Sequential(*last, *([nn.Sigmoid()] if config.discriminator_use_sigmoid else []))
        self.apply(init_weights)

    def segments(self) -> dict[str, nn.Module]:
        """Return the blocks that are recomputed, compiled and sharded one by one, in forward order, by name."""
        return {f"blocks.{i}": block for i, block in enumerate(self.blocks)}

    def forward(self, judged: Tensor) -> Judgement:
        x = judged.contiguous(memory_format=torch.channels_last)
        features: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            if self.with_features:
                # Where the maps need no gradient, the discriminator itself is trained, by its logits alone: a recorded
                # backward would add gradients of zeros for its features.
                features.append(x if judged.requires_grad else x.detach())
        logits = self.output(x)
        return (logits, *features) if self.with_features else logits


def leaky() -> nn.LeakyReLU:
    """Return the activation of every layer but the last."""
    return nn.LeakyReLU(0.2, inplace=True)


def init_weights(module: nn.Module) -> None:
    """Initialise weights by Normal(0, 0.02), as pix2pix and upstream start their discriminators."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
