"""Convolutions of whole pictures and of strips, and ones of few channels.

cuDNN's kernels want many channels: a 7x7 convolution of an RGB picture ran at a twentieth of the
card's rate, the weight gradient of a 4x4 one of eight maps at less than a hundredth. Channels-last
memory lets neighbouring pixels of a row be read as one pixel of more channels for nothing; with the
weights laid out to match, and zeros between, the sums are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.kernels.dispatch import channels_last, compute_dtype, full_precision
from neuropbr_dist.kernels.fused_conv import ConvBiasAct, Pair, ScaledWeight
from neuropbr_dist.kernels.norm_act import activate
from neuropbr_dist.kernels.strip_conv import StripConv
from neuropbr_dist.strip import Strip

FEW = 8  # channels


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
    scale: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    slope: float | None = None,
    strip: Strip | None = None,
) -> Tensor:
    """Return `activation(conv(x) * scale + bias + residual)`, folded and fused where that pays.

    Args:
        x: (N, C, H, W); computed with, as the weight is, in `compute_dtype`.
        weight: (O, C, kh, kw).
        scale: (O,), goes into the weights; None: 1.
        bias: (O,), taken in float32, so that its gradient, a sum over all pixels, is not rounded.
        slope: of the activation below zero: 0 is ReLU; None is no activation.
        strip: way to the other strips where `x` is one of a picture's; its reach fits (`strip_conv.Reach`).
    """
    dtype = compute_dtype(x)
    x, bias = x.to(dtype), None if bias is None else full_precision(bias)
    # One copy for the precision and the layout: weights are many and small, and the host is slow to launch.
    if scale is None:
        weight = weight.to(dtype=dtype, memory_format=torch.channels_last)
    else:
        weight = ScaledWeight.apply(weight, scale, dtype)
    fold = folding(x, weight, stride, padding) if residual is None else None
    if fold is not None:
        x = x if fold.channels == x.shape[1] else F.pad(x, (0, 0, 0, 0, 0, 1))
        x, weight = fold_width(channels_last(x), fold.into), fold_weight(weight, fold, stride[1], padding[1])
        bias = None if bias is None else bias.repeat(fold.out)
        stride, padding = (stride[0], 1), (padding[0], 1)
    x, weight = channels_last(x), channels_last(weight)
    if strip is not None:
        y = StripConv.apply(x, weight, bias, residual, stride, padding, slope, strip)
    elif slope is not None and bias is not None:
        y = ConvBiasAct.apply(x, weight, bias, residual, stride, padding, slope)
    else:
        y = F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), stride, padding)
        y = activate(y, slope, residual)
    return y if fold is None else unfold_width(y, fold.out)
