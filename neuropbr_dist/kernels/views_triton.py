"""Triton kernels of `views`: channels-last tensors, views of a sample adjacent."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuropbr_dist.kernels.dispatch import empty

BLOCK = 2048


@triton.jit
def mean_kernel(x, y, SIZE, BLOCK: tl.constexpr):
    """Compute y = mean of three stretches of SIZE elements, a sample a grid column."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1).to(tl.int64)
    inside = at < SIZE
    base = x + 3 * n * SIZE + at
    v = tl.load(base, inside, 0.0).to(tl.float32)
    v += tl.load(base + SIZE, inside, 0.0).to(tl.float32)
    v += tl.load(base + 2 * SIZE, inside, 0.0).to(tl.float32)
    tl.store(y + n * SIZE + at, (v * (1.0 / 3.0)).to(y.dtype.element_ty), inside)


@triton.jit
def add_mean_gradient_kernel(dx, dmean, out, SIZE, BLOCK: tl.constexpr):
    """Compute out = dx + dmean / 3; dmean is read once for the three views."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1).to(tl.int64)
    inside = at < SIZE
    m = tl.load(dmean + n * SIZE + at, inside, 0.0).to(tl.float32) * (1.0 / 3.0)
    for view in tl.static_range(3):
        place = (3 * n + view) * SIZE + at
        v = tl.load(dx + place, inside, 0.0).to(tl.float32) + m
        tl.store(out + place, v.to(out.dtype.element_ty), inside)


@triton.jit
def max_pool_kernel(x, y, place, H, W, OH, OW, C, BLOCK: tl.constexpr):
    """Compute a piece of one row of y: 3x3 windows of stride 2, padding 1, and which of the nine it was."""
    row, piece = tl.program_id(0), tl.program_id(1)  # row: picture * OH + y
    at = piece * BLOCK + tl.arange(0, BLOCK)
    inside = at < OW * C
    c, j = at % C, at // C
    n, i = row // OH, row % OH
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    which = tl.zeros((BLOCK,), tl.int32)
    for a in tl.static_range(3):
        ii = 2 * i - 1 + a
        base = (n * H + ii).to(tl.int64) * W * C
        for b in tl.static_range(3):
            jj = 2 * j - 1 + b
            there = inside & (ii >= 0) & (ii < H) & (jj >= 0) & (jj < W)
            v = tl.load(x + base + jj * C + c, there, float("-inf")).to(tl.float32)
            # Greater, or NaN, which torch's pooling hands on too.
            better = (v > best) | (v != v)
            best = tl.where(better, v, best)
            which = tl.where(better, a * 3 + b, which)
    out = row.to(tl.int64) * OW * C + at
    tl.store(y + out, best.to(y.dtype.element_ty), inside)
    tl.store(place + out, which.to(tl.int8), inside)


@triton.jit
def max_pool_gradient_kernel(
    dy, place, dmean, dx, H, W, OH, OW, C, WITH_MEAN: tl.constexpr, BLOCK: tl.constexpr
):
    """Compute a piece of one row of dx: from the windows whose maximum the pixel was, and from the mean
    where there is one."""
    row, piece = tl.program_id(0), tl.program_id(1)  # row: picture * H + y
    at = piece * BLOCK + tl.arange(0, BLOCK)
    inside = at < W * C
    c, j = at % C, at // C
    n, i = row // H, row % H
    v = tl.zeros((BLOCK,), tl.float32)
    if WITH_MEAN:
        m = (n // 3 * H + i).to(tl.int64) * W * C
        v += tl.load(dmean + m + at, inside, 0.0).to(tl.float32) * (1.0 / 3.0)
    for a in tl.static_range(2):
        oi = (i + 1) // 2 - a  # the windows that hold row i, at its place i - 2 oi + 1 of 0, 1, 2
        pi = i - 2 * oi + 1
        base = (n * OH + oi).to(tl.int64) * OW * C
        for b in tl.static_range(2):
            oj = (j + 1) // 2 - b
            pj = j - 2 * oj + 1
            there = inside & (oi >= 0) & (oi < OH) & (pi < 3) & (oj >= 0) & (oj < OW) & (pj < 3)
            mine = tl.load(place + base + oj * C + c, there, -1).to(tl.int32) == pi * 3 + pj
            v += tl.load(dy + base + oj * C + c, there & mine, 0.0).to(tl.float32)
    tl.store(dx + row.to(tl.int64) * W * C + at, v.to(dx.dtype.element_ty), inside)


def mean(x: Tensor) -> Tensor:
    """Return the mean over views, (B * 3, C, H, W) -> (B, C, H, W)."""
    n, c, h, w = x.shape
    y = empty((n // 3, c, h, w), x)
    size = c * h * w
    mean_kernel[(triton.cdiv(size, BLOCK), n // 3)](x, y, size, BLOCK)
    return y


def add_mean_gradient(dx: Tensor, dmean: Tensor) -> Tensor:
    """Return dx (B * 3, C, H, W) + dmean (B, C, H, W) / 3."""
    n, c, h, w = dx.shape
    out = torch.empty_like(dx)
    size = c * h * w
    add_mean_gradient_kernel[(triton.cdiv(size, BLOCK), n // 3)](dx, dmean, out, size, BLOCK)
    return out


def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Pool (N, C, H, W) -> pooled (N, C, ceil(H / 2), ceil(W / 2)), and each maximum's place in its window."""
    n, c, h, w = x.shape
    oh, ow = (h + 1) // 2, (w + 1) // 2
    y = empty((n, c, oh, ow), x)
    place = torch.empty_like(y, dtype=torch.int8)
    max_pool_kernel[(n * oh, triton.cdiv(ow * c, BLOCK))](x, y, place, h, w, oh, ow, c, BLOCK)
    return y, place


def max_pool_gradient(dy: Tensor, place: Tensor, dmean: Tensor | None, shape: torch.Size) -> Tensor:
    """Return the gradient of `max_pool`'s input of `shape`, the mean's over the views in it where there is one."""
    n, c, h, w = shape
    oh, ow = dy.shape[2:]
    dx = empty((n, c, h, w), dy)
    grid = (n * h, triton.cdiv(w * c, BLOCK))
    with_mean = dmean is not None
    mean = dmean if with_mean else dy
    max_pool_gradient_kernel[grid](dy, place, mean, dx, h, w, oh, ow, c, with_mean, BLOCK)
    return dx
