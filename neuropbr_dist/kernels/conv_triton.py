"""Triton kernels of `conv`: what cuDNN leaves to be done beside a convolution."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuropbr_dist.kernels.norm_act_triton import apply_kernel, tiles


@triton.jit
def act_gradient_kernel(dy, y, dz, s1, P, C, CHUNK, slope, BP: tl.constexpr, BC: tl.constexpr):
    """Compute dz = dy where y > 0, else slope * dy; sums of dz over a chunk of rows, a channel each."""
    chunk, block = tl.program_id(0), tl.program_id(1)
    c = block * BC + tl.arange(0, BC)
    in_c = c < C
    a1 = tl.zeros((BC,), tl.float32)
    for start in range(0, CHUNK, BP):
        p = chunk.to(tl.int64) * CHUNK + start + tl.arange(0, BP)
        inside = (p < P)[:, None] & in_c[None, :]
        at = p[:, None] * C + c[None, :]
        d = tl.load(dy + at, inside, 0.0).to(tl.float32)
        d = tl.where(tl.load(y + at, inside, 0.0) > 0, d, d * slope)
        tl.store(dz + at, d.to(dz.dtype.element_ty), inside)
        a1 += tl.sum(d, 0)
    tl.store(s1 + chunk * C + c, a1, in_c)


def act_gradient(dy: Tensor, y: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Return the gradient before a (leaky) ReLU whose output was `y`, and its sum a channel in float32."""
    n, c, h, w = y.shape
    t = tiles(1, n * h * w, c)
    dz = torch.empty_like(y)
    s1 = torch.empty((t.chunks, c), dtype=torch.float32, device=y.device)
    act_gradient_kernel[(t.chunks, t.blocks)](dy, y, dz, s1, t.p, c, t.chunk, slope, t.block_p, t.block_c)
    return dz, s1.sum(0)


def add_bias_act_(y: Tensor, bias: Tensor, slope: float) -> Tensor:
    """Return `activation(y + bias)`, computed in place; y (N, C, H, W) channels-last, bias (C,) float32."""
    n, c, h, w = y.shape
    t = tiles(1, n * h * w, c)
    apply_kernel[(triton.cdiv(t.p, t.block_p), t.blocks, 1)](
        y, y, y, torch.ones_like(bias), bias, t.p, c, slope, False, True, t.block_p, t.block_c
    )
    return y
