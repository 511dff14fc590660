"""Triton kernels of `merge`: channels-last tensors, views of a sample adjacent; each tensor is passed over once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuropbr_dist.kernels.dispatch import empty

BLOCK = 1024


@triton.jit
def view_weights(w, n, pixel, P, inside, least):
    """Load the three views' weights at a pixel, and what they are divided by."""
    base = w + 3 * n * P + pixel
    w0 = tl.load(base, inside, 0.0).to(tl.float32)
    w1 = tl.load(base + P, inside, 0.0).to(tl.float32)
    w2 = tl.load(base + 2 * P, inside, 0.0).to(tl.float32)
    return w0, w1, w2, tl.maximum(w0 + w1 + w2, least)


@triton.jit
def merge_kernel(x, w, y, SIZE, P, C, least, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Compute y = mean, maximum and variance (the first PARTS of them) of three stretches of SIZE = P * C elements."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1).to(tl.int64)
    inside = at < SIZE
    pixel, c = at // C, at % C
    w0, w1, w2, total = view_weights(w, n, pixel, P, inside, least)
    base = x + 3 * n * SIZE + at
    v0 = tl.load(base, inside, 0.0).to(tl.float32)
    v1 = tl.load(base + SIZE, inside, 0.0).to(tl.float32)
    v2 = tl.load(base + 2 * SIZE, inside, 0.0).to(tl.float32)
    mean = (v0 * w0 + v1 * w1 + v2 * w2) / total
    out = y + (n * P + pixel) * (PARTS * C) + c
    tl.store(out, mean.to(y.dtype.element_ty), inside)
    if PARTS > 1:
        lowest = float("-inf")
        best = tl.maximum(tl.where(w0 > 0, v0, lowest), tl.where(w1 > 0, v1, lowest))
        best = tl.maximum(best, tl.where(w2 > 0, v2, lowest))
        seen = (w0 > 0) | (w1 > 0) | (w2 > 0)
        tl.store(out + C, tl.where(seen, best, 0.0).to(y.dtype.element_ty), inside)
    if PARTS > 2:
        d0, d1, d2 = v0 - mean, v1 - mean, v2 - mean
        spread = (d0 * d0 * w0 + d1 * d1 * w1 + d2 * d2 * w2) / total
        tl.store(out + 2 * C, spread.to(y.dtype.element_ty), inside)


@triton.jit
def merge_gradient_kernel(dx, dy, x, w, out, SIZE, P, C, least, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Compute out = dx + what of dy goes to each view; of equal views the first has the maximum."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1).to(tl.int64)
    inside = at < SIZE
    pixel, c = at // C, at % C
    w0, w1, w2, total = view_weights(w, n, pixel, P, inside, least)
    base = 3 * n * SIZE + at
    grad = dy + (n * P + pixel) * (PARTS * C) + c
    dmean = tl.load(grad, inside, 0.0).to(tl.float32) / total
    g0, g1, g2 = dmean * w0, dmean * w1, dmean * w2
    if PARTS > 1:
        v0 = tl.load(x + base, inside, 0.0).to(tl.float32)
        v1 = tl.load(x + base + SIZE, inside, 0.0).to(tl.float32)
        v2 = tl.load(x + base + 2 * SIZE, inside, 0.0).to(tl.float32)
        lowest = float("-inf")
        first, second, third = (
            tl.where(w0 > 0, v0, lowest),
            tl.where(w1 > 0, v1, lowest),
            tl.where(w2 > 0, v2, lowest),
        )
        dmax = tl.load(grad + C, inside, 0.0).to(tl.float32)
        second_wins = second > first
        third_wins = third > tl.maximum(first, second)
        g0 += tl.where((w0 > 0) & (second_wins == 0) & (third_wins == 0), dmax, 0.0)
        g1 += tl.where(second_wins & (third_wins == 0), dmax, 0.0)
        g2 += tl.where(third_wins, dmax, 0.0)
        if PARTS > 2:
            mean = (v0 * w0 + v1 * w1 + v2 * w2) / total
            dvar = 2.0 * tl.load(grad + 2 * C, inside, 0.0).to(tl.float32) / total
            g0 += dvar * w0 * (v0 - mean)
            g1 += dvar * w1 * (v1 - mean)
            g2 += dvar * w2 * (v2 - mean)
    g0 += tl.load(dx + base, inside, 0.0).to(tl.float32)
    g1 += tl.load(dx + base + SIZE, inside, 0.0).to(tl.float32)
    g2 += tl.load(dx + base + 2 * SIZE, inside, 0.0).to(tl.float32)
    kind = out.dtype.element_ty
    tl.store(out + base, g0.to(kind), inside)
    tl.store(out + base + SIZE, g1.to(kind), inside)
    tl.store(out + base + 2 * SIZE, g2.to(kind), inside)


def merge(x: Tensor, weight: Tensor, parts: int, least: float) -> Tensor:
    """Merge x (B * 3, C, H, W) channels-last, weight (B * 3, 1, H, W) contiguous -> (B, parts * C, H, W)"""
    n, c, h, w = x.shape
    y = empty((n // 3, parts * c, h, w), x)
    size = c * h * w
    merge_kernel[(triton.cdiv(size, BLOCK), n // 3)](x, weight, y, size, h * w, c, least, parts, BLOCK)
    return y


def merge_gradient(dx: Tensor, dy: Tensor, x: Tensor, weight: Tensor, parts: int, least: float) -> Tensor:
    """Return the gradient of `merge`'s x, that of `x` as it is handed on in it; all channels-last."""
    n, c, h, w = x.shape
    out = torch.empty_like(x)
    size = c * h * w
    grid = (triton.cdiv(size, BLOCK), n // 3)
    merge_gradient_kernel[grid](dx, dy, x, weight, out, size, h * w, c, least, parts, BLOCK)
    return out
