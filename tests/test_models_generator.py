"""The generator: size, shapes, ranges, and what a sample's output may depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from neuropbr_dist.config import ModelConfig
from neuropbr_dist.models import Generator, size_multiple
from neuropbr_dist.models.norm import StepBatchNorm2d, commit_statistics
from tests.support.tiny import assert_maps, tiny_model

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def generator(**changes) -> Generator:
    torch.manual_seed(0)
    return Generator(tiny_model(**changes))


def views(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_default_has_upstreams_size():
    with torch.device("meta"):
        count = sum(p.numel() for p in Generator(ModelConfig()).parameters())
    assert round(count / 1e6, 1) == 261.0


# -- shapes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_gives_maps_of_the_views_size(backbone, stride):
    config = tiny_model(encoder_type="resnet", encoder_backbone=backbone, encoder_stride=stride)
    assert size_multiple(config) == 16 * stride
    with torch.device("meta"):
        maps = Generator(config)(torch.empty(2, 3, 3, 64, 96))
    assert maps.shape == (2, 8, 64, 96)


@pytest.mark.parametrize(
    ("changes", "height", "width"),
    [
        ({}, 4, 4),
        ({}, 12, 20),
        ({"encoder_channels": [8, 16, 16, 16, 16]}, 16, 48),
        ({"use_transformer": False}, 8, 8),
        ({"encoder_type": "resnet", "encoder_backbone": "resnet18"}, 16, 32),
        ({"encoder_type": "resnet", "encoder_backbone": "resnet18", "encoder_stride": 2}, 32, 64),
        ({"encoder_type": "resnet", "encoder_backbone": "resnet50"}, 16, 16),
    ],
    ids=str,
)
def test_any_multiple_of_the_stride_gives_maps_in_range(changes, height, width):
    config = tiny_model(**changes)
    assert height % size_multiple(config) == width % size_multiple(config) == 0
    with torch.no_grad():
        assert_maps(generator(**changes)(100 * views(2, height, width)), 2, height, width)


def test_bf16_weights_give_float32_maps():
    net = generator().to(torch.bfloat16)
    with torch.no_grad():
        maps = net(views(1, 8, 8).bfloat16())
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps[:, 5:].norm(dim=1), torch.ones(1, 8, 8))


# -- what an output depends on ----------------------------------------------------------------


@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
def test_a_samples_maps_do_not_depend_on_the_others_or_on_the_mode(norm):
    net, x = generator(norm=norm, encoder_norm=norm).double(), views(3, 8, 8).double()
    together = net(x)
    order = [2, 0, 1]
    torch.testing.assert_close(net(x[order]), together[order])
    torch.testing.assert_close(torch.cat([net(x[i : i + 1]) for i in range(3)]), together)
    torch.testing.assert_close(net.eval()(x), together)


def test_batch_norm_does_mix_samples():
    """So that the check above is known to see it."""
    net, x = generator(norm="batch", encoder_norm="batch"), views(3, 8, 8)
    assert not torch.allclose(net(x[:1]), net(x)[:1], atol=1e-3)


def test_every_view_counts():
    net, x = generator(), views(1, 8, 8)
    before = net(x)
    for view in range(3):
        changed = x.clone()
        changed[:, view] += 1
        assert not torch.allclose(net(changed), before)


# -- what trains -------------------------------------------------------------------------------


def trained(net: nn.Module) -> set[str]:
    return {name for name, p in net.named_parameters() if p.requires_grad}


def test_freeze_backbone_leaves_the_rest_trainable():
    net = generator(encoder_type="resnet", encoder_backbone="resnet18", freeze_backbone=True)
    assert trained(net) == {name for name, _ in net.named_parameters() if not name.startswith("encoder.")}


@pytest.mark.parametrize("norm", ["auto", "group", "batch", "sync_batch", "frozen_batch"])
def test_freeze_bn_freezes_the_encoders_norms_only(norm):
    net = generator(encoder_norm=norm, freeze_bn=True)
    norms = {
        f"{module_name}.{name}"
        for module_name, module in net.named_modules()
        if module_name.startswith("encoder.") and isinstance(module, nn.GroupNorm | nn.BatchNorm2d)
        for name, _ in module.named_parameters()
    }
    assert norms
    assert trained(net) == {name for name, _ in net.named_parameters()} - norms


def test_freeze_bn_keeps_running_statistics():
    net = generator(encoder_norm="batch", norm="batch", freeze_bn=True)
    before = {name: b.clone() for name, b in net.named_buffers() if "running" in name}
    net(views(2, 8, 8))
    commit_statistics(net)
    moved = {name for name, b in net.named_buffers() if name in before and not torch.equal(b, before[name])}
    assert moved == {name for name in before if not name.startswith("encoder.")}
    assert not any(isinstance(m, StepBatchNorm2d) for m in net.encoder.modules())


def test_all_parameters_get_gradients():
    net = generator()
    net(views(1, 8, 8))[:, :6].sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_segments_are_modules_of_the_network_and_do_not_overlap():
    net = generator()
    inside = [id(p) for module in net.segments().values() for p in module.parameters()]
    assert len(inside) == len(set(inside))
    for name, module in net.segments().items():
        assert net.get_submodule(name) is module
