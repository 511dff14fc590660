"""Bilinear 2x upsampling: `F.interpolate(scale_factor=2, mode="bilinear", align_corners=False)`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.kernels.dispatch import channels_last, compute_dtype, usable
from neuropbr_dist.strip import Strip


def plain_upsample_2x(x: Tensor) -> Tensor:
    """Return what `upsample_2x` does, without a kernel, as its fixed stencil: 3/4 of a pixel and 1/4 of its neighbour.

    The compiled backward of `F.interpolate` scatters with atomics (measured: 70 ms of a step).
    """
    for dim in (2, 3):
        n = x.shape[dim]
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, n - 1)], dim)
        after = torch.cat([x.narrow(dim, 1, n - 1), x.narrow(dim, n - 1, 1)], dim)
        x = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], dim + 1).flatten(dim, dim + 1)
    return x


def plain_upsample_gradient(dy: Tensor) -> Tensor:
    """Return the gradient of `plain_upsample_2x` for that of its result, (B, C, 2h, 2w) -> (B, C, h, w)."""
    for dim in (2, 3):
        even, odd = dy.unflatten(dim, (-1, 2)).unbind(dim + 1)
        n = even.shape[dim]
        # A pixel is the neighbour of the even one after it and of the odd one before it; at the edges of its own two.
        after = torch.cat([even.narrow(dim, 1, n - 1), odd.narrow(dim, n - 1, 1)], dim)
        before = torch.cat([even.narrow(dim, 0, 1), odd.narrow(dim, 0, n - 1)], dim)
        dy = 0.75 * (even + odd) + 0.25 * (after + before)
    return dy


def upsample_2x(x: Tensor, strip: Strip | None = None) -> Tensor:
    """Upsample bilinearly, (B, C, h, w) -> (B, C, 2h, 2w).

    Args:
        strip: way to the other strips where `x` is one of a picture's.
    """
    if strip is not None and torch.compiler.is_compiling():
        return plain_upsample_2x(strip.with_halo(x, 1, 1, "repeat"))[:, :, 2:-2]
    if strip is not None:
        return StripUpsample2x.apply(x.to(compute_dtype(x)), strip)
    if not usable(x):
        return plain_upsample_2x(x)
    return Upsample2x.apply(x.to(compute_dtype(x)))


class Upsample2x(torch.autograd.Function):
    """One pass each way; nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from neuropbr_dist.kernels.upsample_triton import upsample

        return upsample(channels_last(x))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        from neuropbr_dist.kernels.upsample_triton import upsample_gradient

        return upsample_gradient(channels_last(dy))


class StripUpsample2x(torch.autograd.Function):
    """The same of a strip: its first and last row are worked out again once the neighbours' have come."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strip: Strip) -> Tensor:
        x = channels_last(x)
        ctx.strip = strip
        first, last = x[:, :, :1], x[:, :, -1:]
        coming = strip.exchange(first, last, 1, 1)
        y = upsampled(x)
        above, below = coming.wait()
        if above is not None:
            y[:, :, :1] = upsampled(torch.cat([above, first], 2))[:, :, 2:3]
        if below is not None:
            y[:, :, -1:] = upsampled(torch.cat([last, below], 2))[:, :, 1:2]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        dy, strip = channels_last(dy), ctx.strip
        # The quarter of an edge row's gradient that is a neighbour's; the pass over all rows leaves it here.
        up = upsampled_gradient(F.pad(dy[:, :, :1], (0, 0, 2, 1)))[:, :, :1]
        down = upsampled_gradient(F.pad(dy[:, :, -1:], (0, 0, 1, 2)))[:, :, 1:]
        coming = strip.exchange(up, down, 1, 1)
        dx = upsampled_gradient(dy)
        first, last = coming.wait()
        if first is not None:
            dx[:, :, :1] += first - up
        if last is not None:
            dx[:, :, -1:] += last - down
        return dx, None


def upsampled(x: Tensor) -> Tensor:
    """Return the upsampled picture without a graph, by the kernel where it runs."""
    return Upsample2x.forward(None, x) if usable(x) else plain_upsample_2x(x)


def upsampled_gradient(dy: Tensor) -> Tensor:
    """Return the gradient of what was upsampled."""
    return Upsample2x.backward(None, dy) if usable(dy) else plain_upsample_gradient(dy)
