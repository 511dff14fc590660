"""The PatchGAN discriminator: size, receptive field, outputs."""

from __future__ import annotations

import pytest
import torch

from neuropbr_dist.config import ModelConfig, resolve
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.errors import UserError
from neuropbr_dist.models import Discriminator, features_of, logits_of, mean_of_views
from neuropbr_dist.models.conv import SpectralConv2d, largest_singular_value


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


def test_features_are_each_blocks_output_and_carry_a_gradient_to_the_maps_alone():
    maps, plain = torch.rand(2, 8, 64, 64), discriminator(3)
    net = discriminator(3)
    net.with_features = True
    judged = net(maps)
    assert torch.equal(logits_of(judged), plain(maps)) and not features_of(plain(maps))
    assert [f.shape[1:] for f in features_of(judged)] == [(2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 7, 7)]
    x = maps.contiguous(memory_format=torch.channels_last)
    for block, feature in zip(plain.blocks, features_of(judged), strict=True):
        x = block(x)
        assert torch.equal(feature, x) and not feature.requires_grad
    assert logits_of(judged).requires_grad
    assert all(feature.requires_grad for feature in features_of(net(maps.requires_grad_())))


# -- spectral norms, and views beside the maps -------------------------------------------------


def test_a_largest_singular_value_and_its_gradient_are_those_of_a_decomposition():
    torch.manual_seed(0)
    matrix = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    found = largest_singular_value(matrix, iterations=400)
    left, values, right = torch.linalg.svd(matrix.detach())
    torch.testing.assert_close(found.detach(), values[0])
    (gradient,) = torch.autograd.grad(found, matrix)
    torch.testing.assert_close(gradient, torch.outer(left[:, 0], right[0]))
    few = [float(largest_singular_value(matrix.detach(), n)) for n in (1, 2, 8)]
    assert few == sorted(few) and 0.95 * values[0] < few[-1] <= values[0]


def test_spectral_norms_keep_names_and_do_not_depend_on_how_large_weights_are():
    net = discriminator(3, discriminator_norm="spectral").double()
    names = {name for name, _ in net.named_parameters()}
    assert names == {
        f"{layer}.{kind}"
        for layer in (*(f"blocks.{i}.0" for i in range(4)), "output.0")
        for kind in ("weight", "bias")
    }
    assert not list(net.buffers())
    maps = torch.rand(1, 8, 64, 64, dtype=torch.float64)
    logits = net(maps)
    for module in net.modules():
        if isinstance(module, SpectralConv2d):
            module.weight.data *= 30
    torch.testing.assert_close(net(maps), logits)


def test_the_mean_of_views_is_that_of_those_that_show_a_place():
    views = torch.zeros(1, 3, 7, 2, 1)
    views[0, :, 0, :, 0] = torch.tensor([[0.2, 9.0], [0.4, 9.0], [0.9, 9.0]])
    views[0, :, 3, :, 0] = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(mean_of_views(views)[0, 0, :, 0], torch.tensor([0.3, 0.0]))


def test_views_are_judged_on_the_plane_alone():
    assert discriminator(2, discriminator_input="maps_and_views")(torch.rand(1, 11, 32, 32)).shape[1] == 1
    sets = ("model.discriminator_input=maps_and_views", "model.align=none")
    with pytest.raises(UserError, match=r"model\.align = plane"):
        resolve(Overrides(assignments=sets).configuration())
