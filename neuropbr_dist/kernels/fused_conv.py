"""Convolutions with bias, residual and ReLU in the convolution's own pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuropbr_dist.kernels.dispatch import channels_last, full_precision
from neuropbr_dist.kernels.norm_act import activate

Pair = tuple[int, int]


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
        y = bias_act_conv(x, weight, bias, residual, stride, padding, slope)
        ctx.save_for_backward(x, weight, y)
        ctx.stride, ctx.padding, ctx.slope, ctx.has_residual = stride, padding, slope, residual is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, y = ctx.saved_tensors
        dz, dbias = act_gradient(channels_last(dy), y, ctx.slope)
        wanted = ctx.needs_input_grad[:2]
        dx, dweight = conv_gradients(dz, x, weight, ctx.stride, ctx.padding, wanted)
        return dx, dweight, dbias, dz if ctx.has_residual else None, None, None, None


class ScaledWeight(torch.autograd.Function):
    """A weight (O, C, kh, kw) times a scale (O,), channels last, in one launch, and their gradients in three."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight, scale)
        out = torch.empty(weight.shape, dtype=dtype, device=weight.device, memory_format=torch.channels_last)
        return torch.mul(weight, scale.view(-1, 1, 1, 1), out=out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        weight, scale = ctx.saved_tensors
        dweight = dout * scale.view(-1, 1, 1, 1) if ctx.needs_input_grad[0] else None
        dscale = (dout * full_precision(weight)).sum((1, 2, 3)) if ctx.needs_input_grad[1] else None
        return dweight, dscale, None


def bias_act_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Pair,
    padding: Pair,
    slope: float | None,
) -> Tensor:
    """Return `activation(conv(x) + bias + residual)` without a graph, in one cuDNN pass where it has one."""
    if x.is_cuda and slope == 0.0 and bias is not None and fits_cudnn(x, weight, stride, padding):
        words = (bias.to(x.dtype), stride, padding, (1, 1), 1)
        if residual is None:
            return torch.cudnn_convolution_relu(x, weight, *words)
        return torch.cudnn_convolution_add_relu(x, weight, channels_last(residual), 1.0, *words)
    if bias is None or slope is None:
        y = F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), stride, padding)
        return activate(y, slope, residual)
    y = F.conv2d(x, weight, None, stride, padding)
    return bias_act(y if residual is None else y + residual, bias, slope)


def conv_gradients(
    dz: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of a convolution's input and weight, of those that are `wanted`; None for the other."""
    return torch.ops.aten.convolution_backward(
        dz, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, [*wanted, False]
    )[:2]


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
