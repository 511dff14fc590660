"""Group norm, residual and activation in one pass each way (Wu & He 2018).

Statistics, and in backward their gradients, take one pass over the tensor and the result another.
The compiler's took up to three times that, most of it in other memory layouts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.kernels.dispatch import channels_last, usable
from neuropbr_dist.strip import Strip


def activate(x: Tensor, slope: float | None, residual: Tensor | None = None) -> Tensor:
    """Return the (leaky) ReLU of `x + residual` with `slope` below zero; None: nothing but the sum."""
    if residual is not None:
        x = x + residual
    if slope is None:
        return x
    return F.relu(x) if slope == 0.0 else F.leaky_relu(x, slope)


def plain_group_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    slope: float | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return what `group_norm_act` does, without a kernel, in the dtype of `x` (autocast would hand back float32)."""
    out = F.group_norm(x, groups, weight, bias, eps).to(x.dtype)
    return activate(out, slope, residual)


def group_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    slope: float | None = None,
    residual: Tensor | None = None,
    strip: Strip | None = None,
) -> Tensor:
    """Return `activation(group_norm(x) + residual)`, (N, C, H, W) -> (N, C, H, W).

    Args:
        weight, bias: (C,), any float dtype.
        slope: of the activation below zero: 0 is ReLU; None is no activation.
        residual: like `x`, or None.
        strip: of whose picture the statistics are, for the kernels alone; None: `x` is whole.
    """
    if not usable(x):
        return plain_group_norm_act(x, weight, bias, groups, eps, slope, residual)
    return GroupNormAct.apply(x, weight, bias, residual, groups, eps, slope, strip)


class GroupNormAct(torch.autograd.Function):
    """Keeps `x`, and the output where a residual makes the activation's mask out of its reach."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        groups: int,
        eps: float,
        slope: float | None,
        strip: Strip | None = None,
    ) -> Tensor:
        from neuropbr_dist.kernels import norm_act_triton as kernels

        x = channels_last(x)
        residual = None if residual is None else channels_last(residual)
        stats = kernels.statistics(x, weight, bias, groups, eps, strip)
        y = kernels.apply(x, stats, slope, residual)
        mask = y if residual is not None and slope is not None else None
        ctx.save_for_backward(x, weight, mask, *stats)
        ctx.slope, ctx.has_residual, ctx.strip = slope, residual is not None, strip
        ctx.dtypes = weight.dtype, bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from neuropbr_dist.kernels import norm_act_triton as kernels

        x, weight, mask, *stats = ctx.saved_tensors
        dx, dweight, dbias, dz = kernels.backward(
            channels_last(dy), x, weight, kernels.Statistics(*stats), mask, ctx.slope, ctx.has_residual, ctx.strip
        )  # fmt: skip
        return dx, dweight.to(ctx.dtypes[0]), dbias.to(ctx.dtypes[1]), dz, None, None, None, None
