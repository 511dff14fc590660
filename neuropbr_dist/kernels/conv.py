"""Convolutions with bias, residual and ReLU in the convolution's own pass, and ones of few channels.

cuDNN's kernels want many channels: a 7x7 convolution of an RGB picture ran at a twentieth of the
card's rate, the weight gradient of a 4x4 one of eight maps at less than a hundredth. Channels-last
memory lets neighbouring pixels of a row be read as one pixel of more channels for nothing; with the
weights laid out to match, and zeros between, the sums are the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.kernels.dispatch import channels_last
from neuropbr_dist.kernels.norm_act import activate

FEW = 8  # channels
Pair = tuple[int, int]


class Folding(NamedTuple):
    """Folding of a convolution of few channels: pixels that become one, of the output and of the input."""

    out: int
    into: int
    channels: int
    """Channels of the input after padding: `into * channels` is a multiple of 8, which the kernels ask for."""


def folding(x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Folding | None:
    """Return how a convolution is folded; None where it has channels enough, or its shape doesn't fold."""
    channels, taps, length, into = weight.shape[1], weight.shape[3], x.shape[3], 4
    step, pad = stride[1], padding[1]
    if channels > FEW or step not in (1, 2) or length % into:
        return None
    out = into // step
    last = step * (out - 1) - pad + taps - 1  # the last pixel that a block sees, counted from its own first
    if pad > into or last >= 2 * into or (length + 2 * pad - taps) // step + 1 != length // step:
        return None  # only direct neighbours, and rows that get shorter by the stride alone
    return Folding(out, into, channels + channels % 2)


def fold_width(x: Tensor, pixels: int) -> Tensor:
    """Fold (N, C, H, W) -> (N, pixels * C, H, W / pixels), the same memory."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, h, w // pixels, pixels * c).permute(0, 3, 1, 2)


def unfold_width(x: Tensor, pixels: int) -> Tensor:
    """Return the inverse of `fold_width`."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, h, w * pixels, c // pixels).permute(0, 3, 1, 2)


def fold_weight(weight: Tensor, fold: Folding, stride: int, padding: int) -> Tensor:
    """Fold (O, C, kh, kw) -> (out * O, into * channels, kh, 3): the same taps between folded pixels."""
    width = weight.shape[3]
    # one_hot[k, f, u, b]: tap k lies between pixel f of an output block and pixel u of input block b - 1.
    taps = torch.arange(width, device=weight.device).view(-1, 1, 1, 1)
    f = torch.arange(fold.out, device=weight.device).view(1, -1, 1, 1)
    u = torch.arange(fold.into, device=weight.device).view(1, 1, -1, 1)
    b = torch.arange(3, device=weight.device)
    one_hot = (taps == (b - 1) * fold.into + u + padding - stride * f).to(weight.dtype)
    padded = F.pad(weight, (0, 0, 0, 0, 0, fold.channels - weight.shape[1]))
    folded = torch.einsum("ochk,kfub->fouchb", padded, one_hot)
    return folded.flatten(0, 1).flatten(1, 2)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    slope: float | None = None,
) -> Tensor:
    """Return `activation(conv(x) + bias + residual)`, folded and fused where that pays; CUDA, half precision.

    Args:
        x: (N, C, H, W).
        weight: (O, C, kh, kw), of x's dtype.
        bias: (O,), float32, so that its gradient, a sum over all pixels, is not rounded to x's dtype.
        slope: of the activation below zero: 0 is ReLU; None is no activation.
    """
    fold = folding(x, weight, stride, padding) if residual is None else None
    if fold is not None:
        x = x if fold.channels == x.shape[1] else F.pad(x, (0, 0, 0, 0, 0, 1))
        x, weight = fold_width(channels_last(x), fold.into), fold_weight(weight, fold, stride[1], padding[1])
        bias = None if bias is None else bias.repeat(fold.out)
        stride, padding = (stride[0], 1), (padding[0], 1)
    x, weight = channels_last(x), channels_last(weight)
    if slope is not None and bias is not None:
        y = ConvBiasAct.apply(x, weight, bias, residual, stride, padding, slope)
    else:
        y = F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), stride, padding)
        y = activate(y, slope, residual)
    return y if fold is None else unfold_width(y, fold.out)


class ConvBiasAct(torch.autograd.Function):
    """`activation(conv(x) + bias + residual)` that keeps its output only.

    With ReLU one cuDNN pass forward. Backward masks by the output's sign and sums for the bias in one
    pass, and leaves the rest to cuDNN.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        stride: Pair,
        padding: Pair,
        slope: float,
    ) -> Tensor:
        if x.is_cuda and slope == 0.0 and fits_cudnn(x, weight, stride, padding):
            words = (bias.to(x.dtype), stride, padding, (1, 1), 1)
            if residual is None:
                y = torch.cudnn_convolution_relu(x, weight, *words)
            else:
                y = torch.cudnn_convolution_add_relu(x, weight, channels_last(residual), 1.0, *words)
        else:
            y = F.conv2d(x, weight, None, stride, padding)
            y = bias_act(y if residual is None else y + residual, bias, slope)
        ctx.save_for_backward(x, weight, y)
        ctx.stride, ctx.padding, ctx.slope, ctx.has_residual = stride, padding, slope, residual is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, y = ctx.saved_tensors
        dz, dbias = act_gradient(channels_last(dy), y, ctx.slope)
        wanted = [*ctx.needs_input_grad[:2], False]
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            dz, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, wanted
        )
        return dx, dweight, dbias, dz if ctx.has_residual else None, None, None, None


def fits_cudnn(x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> bool:
    """Return whether cuDNN's fused pass can count the elements: three 4096 px views are too many.

    PyTorch cuts a plain convolution's batch where it is too large; the fused one it hands on whole.
    """
    rows, columns = (
        (length + 2 * pad - taps) // step + 1
        for length, pad, taps, step in zip(x.shape[2:], padding, weight.shape[2:], stride, strict=True)
    )
    return max(x.numel(), x.shape[0] * weight.shape[0] * rows * columns) < 2**31


def bias_act(y: Tensor, bias: Tensor, slope: float) -> Tensor:
    """Return `activation(y + bias)`, written over `y` (N, C, H, W) on CUDA."""
    if not y.is_cuda:
        return F.leaky_relu(y + bias.to(y.dtype)[:, None, None], slope)
    from neuropbr_dist.kernels.conv_triton import add_bias_act_

    return add_bias_act_(y, bias, slope)


def act_gradient(dy: Tensor, y: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Return the gradient before a (leaky) ReLU whose output was `y`, and its sum a channel."""
    if not y.is_cuda:
        dz = torch.where(y > 0, dy, dy * slope)
        return dz, dz.sum((0, 2, 3))
    from neuropbr_dist.kernels.conv_triton import act_gradient as fused

    return fused(dy, y, slope)
