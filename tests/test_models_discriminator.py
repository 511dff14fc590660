"""The PatchGAN discriminator: size, receptive field, outputs."""

from __future__ import annotations

import pytest
import torch

from neuropbr_dist.config import ModelConfig
from neuropbr_dist.models import Discriminator


def receptive_field(layers: int) -> int:
    """Side in pixels that one patch logit sees.

    `layers` 4x4 convolutions of stride 2, then two of stride 1. Backwards from one logit: r -> (r - 1) * stride + 4.
    """
    side = 1
    for stride in (1, 1, *[2] * layers):
        side = (side - 1) * stride + 4
    return side


def discriminator(layers: int, **changes) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(ModelConfig(discriminator_n_layers=layers, discriminator_ndf=2, **changes))


def test_default_has_upstreams_size():
    with torch.device("meta"):
        count = sum(p.numel() for p in Discriminator(ModelConfig()).parameters())
    assert round(count / 1e6, 1) == 15.4


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (3, 70), (4, 142), (6, 574)])
def test_receptive_field_by_formula(layers, side):
    assert receptive_field(layers) == side


@pytest.mark.parametrize(("layers", "size"), [(4, 256), (6, 1024)])
def test_receptive_field_by_gradient(layers, size):
    """The pixels that one logit's gradient reaches; a norm that doesn't mix pixels."""
    net = discriminator(layers, norm="frozen_batch").double()
    maps = torch.randn(1, 8, size, size, dtype=torch.float64, requires_grad=True)
    logits = net(maps)
    row, column = (n // 2 for n in logits.shape[2:])
    logits[0, 0, row, column].backward()
    reached = maps.grad[0].abs().sum(0) > 0
    height, width = (int(reached.any(dim).sum()) for dim in (1, 0))
    assert (height, width) == (receptive_field(layers),) * 2
    assert int(reached.sum()) == height * width  # one block without holes


@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
def test_a_samples_logits_do_not_depend_on_the_others_or_on_the_mode(norm):
    net, maps = discriminator(2, norm=norm).double(), torch.rand(3, 8, 32, 32, dtype=torch.float64)
    together = net(maps)
    order = [1, 2, 0]
    torch.testing.assert_close(net(maps[order]), together[order])
    torch.testing.assert_close(net(maps[:1]), together[:1])
    torch.testing.assert_close(net.eval()(maps), together)


def test_logits_are_one_channel_of_patches():
    assert discriminator(3)(torch.rand(2, 8, 64, 48)).shape == (2, 1, 6, 4)


def test_sigmoid_gives_probabilities():
    maps = 1e3 * torch.randn(2, 8, 32, 32)
    probabilities = discriminator(2, discriminator_use_sigmoid=True)(maps)
    assert probabilities.min() >= 0 and probabilities.max() <= 1
    logits = discriminator(2)(maps)
    torch.testing.assert_close(probabilities, logits.sigmoid())
