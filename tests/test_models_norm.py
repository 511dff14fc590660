"""Norm layers: same outputs in both modes where promised, running statistics once a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from neuropbr_dist.models.norm import (
    FrozenBatchNorm2d,
    StepBatchNorm2d,
    commit_statistics,
    no_statistics,
    norm_factory,
)


def picture(seed: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(batch, 4, 6, 6, generator=generator) + torch.arange(4.0)[:, None, None]


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="norm 'layer'; allowed: group, batch, sync_batch, frozen_batch"):
        norm_factory("layer")


@pytest.mark.parametrize("channels", [1, 7, 16, 24, 64, 100, 2048])
def test_group_norm_takes_any_width(channels):
    norm = norm_factory("group")(channels)
    out = norm(torch.randn(1, channels, 3, 3))
    assert out.shape == (1, channels, 3, 3)
    assert torch.equal(
        norm.eval()(torch.ones(1, channels, 3, 3)), norm.train()(torch.ones(1, channels, 3, 3))
    )


def trained_statistics() -> dict[str, torch.Tensor]:
    """A state that torch's own BatchNorm has learned."""
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    for seed in range(3):
        norm(picture(seed))
    return norm.state_dict()


def test_frozen_batch_is_batch_norm_in_eval_mode():
    state = trained_statistics()
    frozen, reference = FrozenBatchNorm2d(4), nn.BatchNorm2d(4).eval()
    frozen.load_state_dict(state)
    reference.load_state_dict(state)
    for mode in (True, False):
        torch.testing.assert_close(frozen.train(mode)(picture(5)), reference(picture(5)))
    gradients = [
        torch.autograd.grad(norm(picture(5)).square().sum(), list(norm.parameters()))
        for norm in (frozen, reference)
    ]
    torch.testing.assert_close(*gradients)
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(picture(5)), reference(picture(5)))
    found = torch.autograd.grad(compiled(picture(5)).square().sum(), list(frozen.parameters()))
    torch.testing.assert_close(found, gradients[1])
    assert all(torch.equal(value, state[name]) for name, value in frozen.state_dict().items())


def test_batch_is_torchs_batch_norm():
    """Outputs, gradients and running statistics, one commit a forward pass."""
    ours, theirs = StepBatchNorm2d(4), nn.BatchNorm2d(4)
    for seed in range(3):
        x, y = picture(seed).requires_grad_(), picture(seed).requires_grad_()
        out, expected = ours(x), theirs(y)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)
        commit_statistics(ours)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(picture(7)), theirs.eval()(picture(7)))


def test_several_passes_move_the_statistics_once_by_their_mean():
    norm = StepBatchNorm2d(4)
    for seed in range(2):
        norm(picture(seed))
    assert norm.running_mean.abs().max() == 0  # not before the commit
    commit_statistics(norm)
    mean = torch.stack([picture(seed).mean((0, 2, 3)) for seed in range(2)]).mean(0)
    torch.testing.assert_close(norm.running_mean, norm.momentum * mean)
    assert int(norm.num_batches_tracked) == 1
    commit_statistics(norm)  # nothing noted since
    assert int(norm.num_batches_tracked) == 1


def test_nothing_is_noted_in_eval_mode_or_under_no_statistics():
    norm = StepBatchNorm2d(4)
    with no_statistics():
        norm(picture(0))
    norm.eval()(picture(0))
    commit_statistics(norm)
    assert int(norm.num_batches_tracked) == 0


@pytest.mark.parametrize("channels", [4, 16, 48])
def test_the_compiled_form_of_group_norm_is_the_same_function(channels):
    """Outputs and gradients in float64 against torch's own."""
    norm = norm_factory("group")(channels).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 5 + 3 * torch.randn(2, channels, 5, 7, dtype=torch.float64)
    found = {}
    for name, function in {"ours": norm.by_channel, "torch": norm}.items():
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        grads = torch.autograd.grad(out.sin().sum(), (leaf, norm.weight, norm.bias))
        found[name] = (out, *grads)
    for ours, theirs in zip(found["ours"], found["torch"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_group_norm_keeps_its_inputs_dtype_under_autocast():
    norm = norm_factory("group")(16)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(1, 16, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
