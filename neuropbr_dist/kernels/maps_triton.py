"""Triton kernels of `maps`: raw channels lie together, maps in planes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # pixels


@triton.jit
def activate_kernel(raw, maps, P, smallest, BLOCK: tl.constexpr):
    """Compute the sigmoid of channels 0 to 4, unit length of 5 to 7."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1).to(tl.int64)
    inside = p < P
    at = raw + (n * P + p) * 8
    to = maps + n * 8 * P + p
    for c in tl.static_range(5):
        v = tl.load(at + c, inside, 0.0).to(tl.float32)
        tl.store(to + c * P, tl.sigmoid(v), inside)
    x = tl.load(at + 5, inside, 0.0).to(tl.float32)
    y = tl.load(at + 6, inside, 0.0).to(tl.float32)
    z = tl.load(at + 7, inside, 0.0).to(tl.float32)
    r = 1.0 / tl.maximum(tl.sqrt(x * x + y * y + z * z), smallest)
    tl.store(to + 5 * P, x * r, inside)
    tl.store(to + 6 * P, y * r, inside)
    tl.store(to + 7 * P, z * r, inside)


@triton.jit
def activate_gradient_kernel(dmaps, raw, draw, P, smallest, BLOCK: tl.constexpr):
    """Compute the gradient; of a normal v of length l: (d - u (u . d)) / l, with u = v / l; d / smallest
    where l is below it."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1).to(tl.int64)
    inside = p < P
    at = (n * P + p) * 8
    dm = dmaps + n * 8 * P + p
    for c in tl.static_range(5):
        s = tl.sigmoid(tl.load(raw + at + c, inside, 0.0).to(tl.float32))
        d = tl.load(dm + c * P, inside, 0.0) * s * (1.0 - s)
        tl.store(draw + at + c, d.to(draw.dtype.element_ty), inside)
    x = tl.load(raw + at + 5, inside, 0.0).to(tl.float32)
    y = tl.load(raw + at + 6, inside, 0.0).to(tl.float32)
    z = tl.load(raw + at + 7, inside, 0.0).to(tl.float32)
    a = tl.load(dm + 5 * P, inside, 0.0)
    b = tl.load(dm + 6 * P, inside, 0.0)
    c = tl.load(dm + 7 * P, inside, 0.0)
    length = tl.sqrt(x * x + y * y + z * z)
    r = 1.0 / tl.maximum(length, smallest)
    along = tl.where(length > smallest, (x * a + y * b + z * c) * r * r, 0.0)
    tl.store(draw + at + 5, ((a - x * along) * r).to(draw.dtype.element_ty), inside)
    tl.store(draw + at + 6, ((b - y * along) * r).to(draw.dtype.element_ty), inside)
    tl.store(draw + at + 7, ((c - z * along) * r).to(draw.dtype.element_ty), inside)


def activate(raw: Tensor, smallest: float) -> Tensor:
    """Turn raw (N, 8, H, W) channels-last -> maps (N, 8, H, W) float32, contiguous."""
    n, c, h, w = raw.shape
    maps = torch.empty((n, c, h, w), dtype=torch.float32, device=raw.device)
    activate_kernel[(triton.cdiv(h * w, BLOCK), n)](raw, maps, h * w, smallest, BLOCK)
    return maps


def activate_gradient(dmaps: Tensor, raw: Tensor, smallest: float) -> Tensor:
    """Return the gradient of `raw`, laid out like it; dmaps float32 contiguous."""
    n, _, h, w = raw.shape
    draw = torch.empty_like(raw)
    activate_gradient_kernel[(triton.cdiv(h * w, BLOCK), n)](dmaps, raw, draw, h * w, smallest, BLOCK)
    return draw
