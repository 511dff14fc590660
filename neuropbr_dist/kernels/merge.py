"""Features that the decoder takes of the encoder's where views don't count alike: mean, maximum and variance.

Ye et al. 2021 ("Deep SVBRDF from video") hand on the maximum, the mean and the variance over the views of a
pixel, with a mask of those that show it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuropbr_dist.kernels.dispatch import channels_last, full_precision, usable
from neuropbr_dist.kernels.views import VIEWS, pass_and_mean

Kind = Literal["mean", "max_mean", "max_mean_var"]
COPIES: dict[Kind, int] = {"mean": 1, "max_mean": 2, "max_mean_var": 3}
"""Merged channels a channel of features: mean, maximum and variance one after the other."""

_LEAST_WEIGHT = 1e-3  # the smallest that a pixel's weights are divided by


def pass_and_merge(x: Tensor, weight: Tensor | None, kind: Kind) -> tuple[Tensor, Tensor]:
    """Hand on the features and give what is merged over the views beside them.

    Where no view counts, what is merged is 0.

    Args:
        x: (B * 3, C, H, W), views of a sample adjacent.
        weight: (B * 3, 1, H, W) from 0 to 1: how much each pixel of a view counts in mean and variance; from above 0
            on it counts in the maximum. None: all alike.

    Returns:
        (B * 3, C, H, W) and (B, `COPIES[kind]` * C, H, W).
    """
    if weight is None and kind == "mean":
        return pass_and_mean(x)
    if weight is None:
        weight = x.new_ones(x.shape[0], 1, *x.shape[2:])
    if usable(x):
        return KernelPassAndMerge.apply(x, weight.detach(), kind)
    if torch.is_grad_enabled() and x.requires_grad:
        return PassAndMerge.apply(x, weight.detach(), kind)
    return x, torch.cat(merged(x, weight, kind), dim=1)


def merged(x: Tensor, weight: Tensor, kind: Kind) -> list[Tensor]:
    """Return the parts that `kind` names, each (B, C, H, W)."""
    views, shares = over_views(x), view_shares(weight, x.dtype)
    mean = weighted(views, shares)
    parts = [mean]
    if kind != "mean":
        best, _ = maximum(views, over_views(weight))
        parts.append(best)
    if kind == "max_mean_var":
        parts.append(weighted([(view - mean).square() for view in views], shares))
    return parts


def over_views(x: Tensor) -> list[Tensor]:
    """Split (B * 3, …) -> three of (B, …)"""
    return list(x.unflatten(0, (-1, VIEWS)).unbind(1))


def view_shares(weight: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return weights over their sum over the views; all 0 where none counts."""
    weights = over_views(full_precision(weight))
    total = (weights[0] + weights[1] + weights[2]).clamp(min=_LEAST_WEIGHT)
    return [(each / total).to(dtype) for each in weights]


def weighted(values: list[Tensor], shares: list[Tensor]) -> Tensor:
    """Return the values' sum weighted by `shares`; by slices, since a reduction over a short outer
    dimension is slow (see `views`)."""
    out = values[0] * shares[0]
    for value, share in zip(values[1:], shares[1:], strict=True):
        out = torch.addcmul(out, value, share)
    return out


def maximum(views: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the largest of the views that count, and for each view whether it is that (of equal ones the first)."""
    seen = [weight > 0 for weight in weights]
    lowest = torch.finfo(views[0].dtype).min
    first, second, third = (torch.where(there, view, lowest) for there, view in zip(seen, views, strict=True))
    second_wins = second > first
    best = torch.where(second_wins, second, first)
    third_wins = third > best
    best = torch.where(third_wins, third, best)
    wins = [~(second_wins | third_wins), second_wins & ~third_wins, third_wins]
    any_seen = seen[0] | seen[1] | seen[2]
    return torch.where(any_seen, best, 0.0), [win & there for win, there in zip(wins, seen, strict=True)]


class PassAndMerge(torch.autograd.Function):
    """Keeps the features and the weights, which the layers around keep as well; the rest is worked out again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.kind = kind
        return x.view_as(x), torch.cat(merged(x, weight, kind), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor, dmerged: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        views, shares = over_views(x), view_shares(weight, x.dtype)
        dmean, *more = dmerged.chunk(COPIES[ctx.kind], dim=1)
        out = [torch.addcmul(d, dmean, share) for d, share in zip(over_views(dx), shares, strict=True)]
        if ctx.kind != "mean":
            _, wins = maximum(views, over_views(weight))
            out = [d + more[0] * win for d, win in zip(out, wins, strict=True)]
        if ctx.kind == "max_mean_var":
            mean = weighted(views, shares)
            out = [
                d + 2 * more[1] * share * (v - mean) for d, v, share in zip(out, views, shares, strict=True)
            ]
        return torch.stack(out, dim=1).flatten(0, 1), None, None


class KernelPassAndMerge(torch.autograd.Function):
    """`PassAndMerge` in one pass each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
        from neuropbr_dist.kernels.merge_triton import merge

        weight = weight.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.parts = COPIES[kind]
        return x.view_as(x), merge(channels_last(x), weight, ctx.parts, _LEAST_WEIGHT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor, dmerged: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        from neuropbr_dist.kernels.merge_triton import merge_gradient

        x, weight = ctx.saved_tensors
        dx, dmerged, x = channels_last(dx), channels_last(dmerged), channels_last(x)
        return merge_gradient(dx, dmerged, x, weight, ctx.parts, _LEAST_WEIGHT), None, None
