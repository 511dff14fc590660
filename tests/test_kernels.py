"""The kernels' own mathematics on a CPU: Triton's in its interpreter (and compiled, unlaunched), the convolutions' in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from neuropbr_dist.kernels import dispatch
from neuropbr_dist.kernels.conv import conv, fold_weight, fold_width, folding, unfold_width
from neuropbr_dist.kernels.fused_conv import ConvBiasAct, ScaledWeight, fits_cudnn
from tests.support.distributed import ROOT
from tests.support.twins import compare, picture


@pytest.mark.parametrize(("file", "interpret"), [("interpreted_kernels", "1"), ("compiled_kernels", "0")])
def test_tritons_kernels(file, interpret):
    """In a process of its own: Triton decides when it is imported whether it interprets.

    Triton 3.6, that of torch 2.11, can't interpret loops with NumPy 2.4 and newer ("only 0-dimensional arrays").
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"tests/support/{file}.py"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": interpret},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


# -- convolutions -------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("residual", [False, True])
def test_conv_bias_and_activation_are_their_parts(residual, slope):
    x, weight = picture(2, 3, 6, 7, dtype=torch.float64), picture(4, 3, 3, 3, seed=1, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64).requires_grad_()
    more = [picture(2, 4, 3, 4, seed=2, dtype=torch.float64)] if residual else []

    def ours(x, weight, bias, r=None):
        return ConvBiasAct.apply(x, weight, bias, r, (2, 2), (1, 1), slope)

    def twin(x, weight, bias, r=0):
        return F.leaky_relu(F.conv2d(x, weight, bias, 2, 1) + r, slope)

    compare(ours, twin, [x, weight, bias, *more], bound=1e-12)


FOLDED = {  # channels, taps, stride, padding
    "stem": (3, 7, 1, 3),
    "stem of stride 2": (3, 7, 2, 3),
    "first of the discriminator": (8, 4, 2, 1),
    "U-Net": (3, 3, 1, 1),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_folded_convolution_is_the_same(name):
    channels, taps, stride, padding = FOLDED[name]
    x = picture(2, channels, 12, 16, dtype=torch.float64)
    weight = picture(5, channels, taps, taps, seed=1, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64).requires_grad_()
    at = {"stride": (stride, stride), "padding": (padding, padding)}
    fold = folding(x, weight, *at.values())
    assert fold is not None and fold.into * fold.channels % 8 == 0
    for slope, twin in ((0.0, F.relu), (0.2, lambda y: F.leaky_relu(y, 0.2)), (None, lambda y: y)):
        compare(
            lambda x, w, b, slope=slope: conv(x, w, b, slope=slope, **at),
            lambda x, w, b, twin=twin: twin(F.conv2d(x, w, b, stride, padding)),
            [x, weight, bias],
            bound=1e-12,
        )


@pytest.mark.parametrize(
    ("shape", "weight", "stride", "padding"),
    [
        ((1, 16, 8, 8), (4, 16, 3, 3), 1, 1),  # channels enough
        ((1, 3, 8, 10), (4, 3, 3, 3), 1, 1),  # rows that four doesn't divide
        ((1, 3, 8, 8), (4, 3, 3, 3), 1, 0),  # rows get shorter
        ((1, 3, 8, 16), (4, 3, 13, 13), 1, 6),  # further than the neighbours
    ],
)
def test_what_does_not_fold_is_left_alone(shape, weight, stride, padding):
    assert folding(torch.empty(shape), torch.empty(weight), (stride, stride), (padding, padding)) is None


def test_folding_moves_no_memory():
    x = picture(2, 6, 4, 8).detach()
    folded = fold_width(x, 4)
    assert folded.shape == (2, 24, 4, 2) and folded.data_ptr() == x.data_ptr()
    assert folded.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(unfold_width(folded, 4), x)


def test_folded_weights_hold_each_tap_once_an_output_pixel():
    x, weight = torch.empty(1, 3, 8, 8), torch.randn(2, 3, 7, 7, dtype=torch.float64)
    fold = folding(x, weight, (1, 1), (3, 3))
    folded = fold_weight(weight, fold, 1, 3)
    assert folded.shape == (8, 16, 7, 3)
    assert torch.equal(folded.sum(), weight.sum() * fold.out) or torch.isclose(
        folded.sum(), weight.sum() * fold.out
    )


def test_kernels_stay_off_where_they_cannot_run():
    assert not dispatch.usable(torch.zeros(1, dtype=torch.bfloat16))


def test_a_batch_of_one_keeps_its_layout_through_a_view():
    """As FSDP2's hooks hand inputs on; torch goes by strides, and took it for channels-first."""
    x = picture(1, 6, 4, 8).detach()
    seen = x.view_as(x)
    assert seen.stride() != x.stride()
    again = dispatch.channels_last(seen)
    assert again.stride() == x.stride() and again.data_ptr() == x.data_ptr()
    out = F.conv2d(again, torch.randn(5, 6, 3, 3), padding=1)
    assert out.stride(1) == 1


def test_its_gradient_comes_back_in_the_same_memory():
    """One that is copied into the other layout costs two passes over the picture for every layer."""
    x = picture(1, 6, 4, 8)
    dy = torch.randn(1, 6, 4, 8).contiguous(memory_format=torch.channels_last)
    (dx,) = torch.autograd.grad(dispatch.channels_last(x.view_as(x)), x, dy)
    assert torch.equal(dx, dy) and dx.data_ptr() == dy.data_ptr()


def test_kernels_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(dispatch, "_enabled", True)
    dispatch.enable(False)
    assert not dispatch._enabled


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_scaled_weight_and_its_gradients_are_the_products(kind):
    weight = torch.randn(3, 4, 2, 2, dtype=kind).requires_grad_()
    scale = torch.randn(3, dtype=torch.promote_types(kind, torch.float32)).requires_grad_()
    found, plain = ScaledWeight.apply(weight, scale, kind), (weight * scale.view(-1, 1, 1, 1)).to(kind)
    assert torch.equal(found, plain) and found.is_contiguous(memory_format=torch.channels_last)
    dout = torch.randn(3, 4, 2, 2).to(kind)
    ours, theirs = (torch.autograd.grad(each, (weight, scale), dout) for each in (found, plain))
    torch.testing.assert_close(ours, theirs)
    assert [g.dtype for g in ours] == [kind, scale.dtype]


@pytest.mark.parametrize(("views", "side", "fits"), [(3, 2048, True), (1, 4096, True), (3, 4096, False)])
def test_pictures_too_large_for_the_fused_pass_are_seen(views, side, fits):
    x, weight = (torch.empty(shape, device="meta") for shape in ((views, 4, side, side), (64, 4, 7, 7)))
    assert fits_cudnn(x, weight, (1, 1), (3, 3)) == fits
