"""Features that the decoder takes of the encoder's: their mean over a sample's views.

Each operation here hands on the features and gives the mean beside them, so that one pass of
backward joins the two gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.kernels.dispatch import channels_last, usable
from neuropbr_dist.strip import Strip

VIEWS = 3


def mean_over_views(x: Tensor) -> Tensor:
    """Return the mean over views, (B * 3, C, H, W), views of a sample adjacent -> (B, C, H, W).

    As a sum of slices: `mean` over a short outer dimension is a slow reduction in bf16
    (measured: 59 ms of a step).
    """
    first, second, third = x.unflatten(0, (-1, VIEWS)).unbind(1)
    return (first + second + third) * (1.0 / VIEWS)


def pass_and_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return `x` (B * 3, C, H, W) itself, and its mean over the views (B, C, H, W)."""
    return PassAndMean.apply(x) if usable(x) else (x, mean_over_views(x))


def max_pool_and_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ResNet's 3x3 max pooling of stride 2, and the mean over the views of what goes in.

    (B * 3, C, H, W) -> (B * 3, C, H / 2, W / 2), (B, C, H, W). Of equal pixels in a window the
    first gets the gradient, as in torch.
    """
    if usable(x):
        return MaxPool.apply(x, True)
    return F.max_pool2d(x, 3, 2, 1), mean_over_views(x)


def max_pool(x: Tensor, strip: Strip | None = None) -> Tensor:
    """Return ResNet's 3x3 max pooling of stride 2 alone.

    Args:
        strip: way to the other strips where `x` is one of a picture's.
    """
    if strip is not None and usable(x):
        return StripMaxPool.apply(x, strip)
    if strip is not None:
        # One row above is in a window's reach; with two, windows stay where they were, and the first is the neighbour's.
        return F.max_pool2d(strip.with_halo(x, 2, 0, "lowest"), 3, 2, 1)[:, :, 1:]
    return MaxPool.apply(x, False) if usable(x) else F.max_pool2d(x, 3, 2, 1)


class PassAndMean(torch.autograd.Function):
    """Keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        from neuropbr_dist.kernels.views_triton import mean

        return x.view_as(x), mean(channels_last(x))

    @staticmethod
    def backward(ctx: Any, dx: Tensor, dmean: Tensor) -> Tensor:  # type: ignore[override]
        from neuropbr_dist.kernels.views_triton import add_mean_gradient

        return add_mean_gradient(channels_last(dx), channels_last(dmean))


class MaxPool(torch.autograd.Function):
    """Keeps the place of each window's maximum, a byte each; torch's keeps eight. Gives the mean beside it if asked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, with_mean: bool) -> Tensor | tuple[Tensor, Tensor]:
        from neuropbr_dist.kernels.views_triton import max_pool, mean

        x = channels_last(x)
        pooled, place = max_pool(x)
        ctx.save_for_backward(place)
        ctx.shape = x.shape
        return (pooled, mean(x)) if with_mean else pooled

    @staticmethod
    def backward(ctx: Any, dpooled: Tensor, dmean: Tensor | None = None) -> tuple[Tensor, None]:  # type: ignore[override]
        from neuropbr_dist.kernels.views_triton import max_pool_gradient

        (place,) = ctx.saved_tensors
        dmean = None if dmean is None else channels_last(dmean)
        return max_pool_gradient(channels_last(dpooled), place, dmean, ctx.shape), None


class StripMaxPool(torch.autograd.Function):
    """`max_pool` of a strip of evenly many rows: its first row of windows is done again once the row above has come."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strip: Strip) -> Tensor:
        from neuropbr_dist.kernels.views_triton import max_pool

        x = channels_last(x)
        coming = strip.exchange(x[:, :, :0], x[:, :, -1:], 1, 0)
        pooled, place = max_pool(x)
        above, _ = coming.wait()
        ctx.shape, ctx.strip, top_place = x.shape, strip, None
        if above is not None:
            # Of these rows' windows the second is the strip's first.
            top, top_place = max_pool(channels_last(torch.cat([above, above, x[:, :, :2]], 2)))
            pooled[:, :, :1], place[:, :, :1] = top[:, :, 1:], top_place[:, :, 1:]
        ctx.save_for_backward(place, top_place)
        return pooled

    @staticmethod
    def backward(ctx: Any, dpooled: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        from neuropbr_dist.kernels.views_triton import max_pool_gradient

        place, top_place = ctx.saved_tensors
        n, c, _, w = ctx.shape
        dpooled = channels_last(dpooled)
        up = nothing = dpooled.new_empty(n, c, 0, w)
        if top_place is not None:
            rows = channels_last(F.pad(dpooled[:, :, :1], (0, 0, 1, 0)))
            up = max_pool_gradient(rows, top_place, None, torch.Size((n, c, 4, w)))[:, :, 1:2]
        coming = ctx.strip.exchange(up, nothing, 0, 1)
        dx = max_pool_gradient(dpooled, place, None, ctx.shape)
        _, last = coming.wait()
        if last is not None:
            dx[:, :, -1:] += last
        return dx, None
