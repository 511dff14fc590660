"""Attention's operations as compiled and recomputed code sees them; on a GPU, FlashAttention-4 itself."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from neuropbr_dist.kernels import attention
from neuropbr_dist.kernels.attention import (
    FEWEST_TOKENS,
    flash_attention,
    flash_attention_backward,
    flash_installed,
    plain_attention,
    runs_flash,
)
from neuropbr_dist.models.fusion import TransformerBlock
from neuropbr_dist.parallel.activation import checkpoint_segment

MODULE = sys.modules["neuropbr_dist.kernels.attention"]  # the package's name is the function's


@flash_attention.register_kernel("cpu")
def _(qkv: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).transpose(1, 2).contiguous(), scores.logsumexp(-1).float()


@flash_attention_backward.register_kernel("cpu")
def _(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scale = q.shape[-1] ** -0.5
    p = (scale * q @ k.mT - lse.unsqueeze(-1)).exp()
    d = dout.transpose(1, 2)
    ds = scale * p * (d @ v.mT - (d * out.transpose(1, 2)).sum(-1, keepdim=True))
    return torch.stack([ds @ k, ds.mT @ q, p.mT @ d]).permute(1, 3, 0, 2, 4).contiguous()


class Calls(TorchDispatchMode):
    """How often the forward operation ran."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.neuropbr_dist.flash_attention.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def flash(monkeypatch):
    """Take the operation, with plain kernels behind it: no card here runs the package's."""
    monkeypatch.setattr(MODULE, "runs_flash", lambda qkv, dropout=0.0: True)


@pytest.fixture
def qkv():
    return torch.randn(2, 5, 3, 2, 8, dtype=torch.float64, requires_grad=True)


def test_the_operations_keep_pytorchs_rules(qkv):
    torch.library.opcheck(flash_attention, (qkv,))
    out, lse = flash_attention(qkv.detach())
    torch.library.opcheck(flash_attention_backward, (torch.randn_like(out), qkv.detach(), out, lse))


def test_gradients_of_queries_keys_and_values_go_where_they_belong(flash, qkv):
    ours, theirs = attention(qkv), plain_attention(qkv)
    torch.testing.assert_close(ours, theirs)
    g = torch.randn_like(theirs)
    torch.testing.assert_close(
        *(torch.autograd.grad(y, qkv, g)[0] for y in (ours, theirs)), rtol=1e-6, atol=1e-6
    )


def test_a_compiled_block_has_it_as_one_node_and_keeps_its_output(flash):
    torch.manual_seed(0)
    block = TransformerBlock(16, 2, 2, 0.0, 0.0, 0.0)
    x = torch.randn(1, 6, 16, requires_grad=True)
    want = torch.autograd.grad(block(x).square().sum(), x)[0]
    checkpoint_segment(block, "selective")
    with Calls() as calls:
        torch.testing.assert_close(torch.autograd.grad(block(x).square().sum(), x)[0], want)
    assert calls.count == 1  # not again in backward
    compiled = torch.compile(block, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x).square().sum(), x)[0], want, rtol=1e-4, atol=1e-5
    )


def test_without_a_card_or_with_dropout_pytorch_chooses(qkv):
    half = torch.zeros(1, FEWEST_TOKENS, 3, 2, 8, dtype=torch.bfloat16)
    assert not runs_flash(half)
    assert not runs_flash(half, 0.1)
    assert not runs_flash(qkv)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or not flash_installed(), reason="needs CUDA, flash-attn-4")
@pytest.mark.parametrize("width", [32, 64, 128])
def test_flash_attention_4_is_as_near_to_float32_as_pytorchs_own(width):
    torch.manual_seed(0)
    x = torch.randn(1, FEWEST_TOKENS + 24, 3, 4, width, device="cuda")
    half = x.bfloat16().requires_grad_()
    exact = half.detach().float().requires_grad_()
    assert runs_flash(half)
    g = torch.randn(1, FEWEST_TOKENS + 24, 4, width, device="cuda").bfloat16()

    def errors(y: Tensor) -> list[float]:
        truth = plain_attention(exact)
        pairs = [(y, truth)]
        pairs += [(torch.autograd.grad(y, half, g)[0], torch.autograd.grad(truth, exact, g.float())[0])]
        return [float((a.float() - b).norm() / b.norm()) for a, b in pairs]

    for ours, theirs in zip(errors(attention(half)), errors(plain_attention(half)), strict=True):
        assert ours <= 1.2 * theirs


@pytest.mark.parametrize(("tokens", "asked"), [(192, False), (256, True), (49152, True), (1728, False)])
def test_cudnn_is_asked_for_whole_tiles_alone(monkeypatch, tokens, asked):
    """Its gradient is NaN where a last tile isn't full and all scores of a query are low."""
    found = []

    def product(q, k, v, dropout_p):
        found.append(torch.backends.cuda.cudnn_sdp_enabled())
        return q

    monkeypatch.setattr(MODULE.F, "scaled_dot_product_attention", product)
    with FakeTensorMode():
        attention(torch.empty(1, tokens, 3, 8, 64, dtype=torch.bfloat16, device="cuda"), dropout=0.1)
    assert found == [asked]
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("tokens", [64, 192, 256, 432, 1728])
def test_gradients_are_sound_where_all_scores_of_a_query_are_low(tokens):
    """About -120: exp(120) is more than float32 holds, and a trained network has such scores."""
    torch.manual_seed(0)
    x = torch.randn(2, tokens, 3, 4, 64, device="cuda") * 0.1
    x[:, :, 0, :, 0], x[:, :, 1, :, 0] = 1.0, -120 * 8.0
    half = x.bfloat16().requires_grad_()
    exact = half.detach().float().requires_grad_()
    g = torch.randn(2, tokens, 4, 64, device="cuda").bfloat16()
    ours = torch.autograd.grad(attention(half), half, g)[0]
    theirs = torch.autograd.grad(plain_attention(exact), exact, g.float())[0]
    assert ours.isfinite().all()
    # Not the queries': what the keys have in common cancels there, and leaves bf16's rounding of it.
    ours, theirs = ours[:, :, 1:].float(), theirs[:, :, 1:]
    assert float((ours - theirs).norm() / theirs.norm()) < 0.02
