"""The run's two networks, from the set-up; and the pretrained weights that one of them may start from."""

from __future__ import annotations

import torch
from torch import nn

from neuropbr_dist import kernels
from neuropbr_dist.config import ModelConfig
from neuropbr_dist.models import (
    Discriminator,
    Generator,
    PretrainedUnavailable,
    load_backbone,
    pretrained_backbone,
)
from neuropbr_dist.parallel import Network, build_network, change_network
from neuropbr_dist.ranks import on_rank_0
from neuropbr_dist.strip import Strip
from neuropbr_dist.training.first_weights import FirstWeights, Weights
from neuropbr_dist.training.setup import Setup


def build_networks(
    setup: Setup,
    backbone: Weights | None = None,
    first: FirstWeights | None = None,
    strip: Strip | None = None,
) -> dict[str, Network]:
    """Return generator and, with a GAN, discriminator: two engines, each sharded on its own. Collective.

    Args:
        backbone: what the generator's encoder starts from, instead of random weights.
        first: what both start from.
        strip: this rank's of the samples that it shares; None: it has whole ones.
    """
    cfg = setup.cfg
    kernels.enable(cfg.training.kernels)
    torch.manual_seed(cfg.training.seed)  # the same weights on every rank before sharding
    generator = Generator(cfg.model)
    if backbone is not None:
        load_backbone(generator.encoder, backbone)
    if first is not None:
        first.load("generator", generator)
    networks = {"generator": build_network(generator, setup.device, setup.networks["generator"], strip)}
    if cfg.model.use_gan:
        discriminator: nn.Module = Discriminator(cfg.model, with_features=cfg.loss.w_feature_matching > 0)
        if first is not None:
            first.load("discriminator", discriminator)
        networks["discriminator"] = build_network(
            discriminator, setup.device, setup.networks["discriminator"], strip
        )
    return networks


def change_networks(
    networks: dict[str, Network], before: Setup, after: Setup, strip: Strip | None = None
) -> None:
    """Let networks that were built for one stage go on in the next; their state stays as it is. Collective.

    Args:
        strip: as `build_networks`'s, in the next.
    """
    for part, network in networks.items():
        change_network(network, before.networks[part], after.networks[part], strip)
    if after.device.type == "cuda":
        torch.cuda.empty_cache()  # blocks in the sizes of pictures that don't come again
        torch.cuda.reset_peak_memory_stats(after.device)


def backbone_weights(model: ModelConfig) -> Weights | str:
    """Return the ImageNet weights that rank 0 has, or why it has none; the same on every rank. Collective."""

    def found() -> Weights | str:
        try:
            return pretrained_backbone(model.encoder_backbone)
        except PretrainedUnavailable as error:
            return str(error)

    return on_rank_0(found)
