"""The generator on the plane: seven channels a view, what they start as, missing views, and what old weights mean."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from neuropbr_dist.config import ModelConfig, TrainConfig, check_same_networks, settled
from neuropbr_dist.errors import UserError
from neuropbr_dist.models import Generator, load_backbone, view_channels
from neuropbr_dist.models.encoder import ResNetEncoder
from tests.support.tiny import assert_maps, tiny_model

MERGES = ("mean", "max_mean", "max_mean_var")


def generator(**changes) -> Generator:
    torch.manual_seed(0)
    return Generator(tiny_model(align="plane", **changes))


def rectified(batch: int, side: int, missing: tuple[int, ...] = ()) -> Tensor:
    """(B, 3, 7, side, side): RGB, mask, direction; zeros where the mask is 0."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 7, side, side, generator=g)
    mask = (torch.rand(batch, 3, 1, side, side, generator=g) > 0.2).float()
    mask[:, list(missing)] = 0
    x[:, :, 3:4] = 1
    return x * mask


@pytest.mark.parametrize("encoder", ["unet", "resnet"])
@pytest.mark.parametrize("skip_merge", MERGES)
@pytest.mark.parametrize(
    ("embedding", "normals"), [("none", "slopes"), ("position", "free"), ("view", "slopes")]
)
def test_every_variant_gives_maps(encoder, skip_merge, embedding, normals):
    changes = {"encoder_type": encoder, "encoder_backbone": "resnet18", "encoder_stride": 2}
    net = generator(skip_merge=skip_merge, token_embedding=embedding, normals=normals, **changes)
    x = rectified(2, 32, missing=(1,))
    maps = net(x)
    assert_maps(maps, 2, 32, 32)
    (maps[:, :5].sum() + maps[:, 5].sum()).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        starts_closed = name.startswith("encoder.layer")  # a residual block's last norm starts at 0
        assert starts_closed or p.grad.abs().max() > 0, name


def test_normals_by_slopes_point_out_of_the_surface():
    net = generator(normals="slopes", encoder_channels=[8, 16, 24])
    with torch.no_grad():
        net.decoder.heads.weight *= 1000
        steep = net(rectified(1, 16))[:, 5:]
        assert steep[:, 2].min() >= 1 / 19**0.5 - 1e-6 and steep[:, :2].abs().max() > 0.9
        net.decoder.heads.weight.zero_()
        flat = net(rectified(1, 16))[0, 5:, 0, 0]
    assert flat.tolist() == [0, 0, 1]


@pytest.mark.parametrize("encoder", ["unet", "resnet"])
def test_what_the_plane_adds_starts_without_effect(encoder):
    """With all views seen everywhere, the same weights say the same of the same pictures."""
    changes = {
        "encoder_type": encoder,
        "encoder_backbone": "resnet18",
        "skip_merge": "mean",
        "normals": "free",
    }
    torch.manual_seed(0)
    plain = Generator(tiny_model(**changes)).double()
    torch.manual_seed(0)
    net = Generator(tiny_model(align="plane", token_embedding="none", **changes)).double()
    x = torch.randn(2, 3, 7, 16, 16, dtype=torch.float64)
    x[:, :, 3] = 1
    torch.testing.assert_close(net(x), plain(x[:, :, :3]))
    added = {name: p for name, p in net.named_parameters() if name.endswith(".extra")}
    assert [tuple(p.shape[1:2]) for p in added.values()] == [(4,)]
    net(x).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in added.values())


def test_a_missing_view_leaves_nothing_in_the_skips():
    net = generator(skip_merge="max_mean_var")
    x = rectified(1, 16, missing=(2,))
    _, before = net.encoder(x.flatten(0, 1))
    with torch.no_grad():
        x[:, 2, :3] = 5  # what no rectifier makes: a picture where the mask is 0
    _, after = net.encoder(x.flatten(0, 1))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("encoder", ["unet", "resnet"])
@pytest.mark.parametrize("use_transformer", [True, False])
def test_nothing_of_a_missing_view_counts_and_nothing_goes_back_through_it(encoder, use_transformer):
    net = generator(
        encoder_type=encoder, encoder_backbone="resnet18", use_transformer=use_transformer
    ).double()
    x = rectified(2, 32, missing=(0, 2)).double()
    other = x.clone()
    other[:, [0, 2], :3] = 7  # as no view is that shows nothing
    other.requires_grad_()
    maps = net(other)
    assert torch.equal(maps, net(x))
    (maps[:, :5].sum() + maps[:, 5].sum()).backward()
    gradient = other.grad.abs().amax((0, 2, 3, 4))
    assert gradient[0] == gradient[2] == 0 < gradient[1]


def test_added_channels_train_under_a_frozen_backbone():
    net = generator(encoder_type="resnet", encoder_backbone="resnet18", freeze_backbone=True)
    inside = [name for name, p in net.named_parameters() if p.requires_grad and name.startswith("encoder.")]
    assert inside == ["encoder.stem.0.extra"]
    net(rectified(1, 16)).sum().backward()
    assert net.encoder.stem[0].extra.grad.abs().max() > 0


def test_pretrained_weights_stay_what_they_are():
    torch.manual_seed(5)
    state = ResNetEncoder("resnet18", 1, "frozen_batch").state_dict()
    net = generator(encoder_type="resnet", encoder_backbone="resnet18", encoder_norm="frozen_batch")
    load_backbone(net.encoder, state)
    assert torch.equal(net.encoder.stem[0].weight, state["stem.0.weight"])
    assert net.encoder.stem[0].extra.shape == (64, 4, 7, 7) and not net.encoder.stem[0].extra.any()


def test_views_are_told_apart_by_a_view_embedding_alone():
    """The same picture three times: tokens of the views differ only if they are told their view."""
    for embedding, differ in (("none", False), ("position", False), ("view", True)):
        net = generator(token_embedding=embedding).fusion
        seen = []
        net.blocks[0].register_forward_hook(lambda _m, args, _o, seen=seen: seen.append(args[0]))
        latents = torch.randn(1, 16, 2, 2).repeat(3, 1, 1, 1)
        net(latents)
        first, second, _ = seen[0].unflatten(1, (3, -1)).unbind(1)
        assert torch.equal(first, second) != differ
        flat = latents[:1].flatten(2).transpose(1, 2)
        assert torch.equal(first, flat) == (embedding == "none")


def test_what_auto_means():
    assert settled(ModelConfig()).align == "none"
    assert settled(ModelConfig()) == settled(ModelConfig(align="none", skip_merge="mean", token_embedding="none", normals="free"))  # fmt: skip
    plane = settled(ModelConfig(align="plane"))
    assert "auto" not in (plane.skip_merge, plane.token_embedding, plane.normals)
    assert settled(ModelConfig(align="plane", skip_merge="mean")).skip_merge == "mean"
    assert settled(plane) == plane
    assert (view_channels(ModelConfig()), view_channels(plane)) == (3, 7)


def test_a_saved_run_without_these_fields_is_the_network_that_it_was():
    old, now = TrainConfig(), TrainConfig()
    now.model = settled(now.model)
    check_same_networks(old, now, "--resume x")
    for changes in (
        {"align": "plane"},
        {"skip_merge": "max_mean"},
        {"normals": "slopes"},
        {"token_embedding": "view"},
    ):
        now.model = dataclasses.replace(settled(ModelConfig()), **changes)
        with pytest.raises(UserError, match=rf"another architecture: model.{min(changes)} = .* \(saved: "):
            check_same_networks(old, now, "--resume x")
