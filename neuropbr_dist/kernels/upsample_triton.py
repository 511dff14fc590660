"""Triton kernels of `upsample`: one program a row of pixels, channels together."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from neuropbr_dist.kernels.dispatch import empty

BLOCK = 2048


@triton.jit
def upsample_kernel(x, y, H, W, C, BLOCK: tl.constexpr):
    """Compute a piece of one row of y: each pixel from its four neighbours in x."""
    row, piece = tl.program_id(0), tl.program_id(1)  # row: sample * 2H + y
    at = piece * BLOCK + tl.arange(0, BLOCK)
    inside = at < 2 * W * C
    c, j = at % C, at // C
    n, i = row // (2 * H), row % (2 * H)
    near_i, near_j = i // 2, j // 2
    far_i = tl.minimum(tl.maximum(near_i + (i % 2) * 2 - 1, 0), H - 1)
    far_j = tl.minimum(tl.maximum(near_j + (j % 2) * 2 - 1, 0), W - 1)
    top = (n * H + near_i).to(tl.int64) * W * C
    bottom = (n * H + far_i).to(tl.int64) * W * C
    near, far = near_j * C + c, far_j * C + c
    a = tl.load(x + top + near, inside, 0.0).to(tl.float32)
    b = tl.load(x + top + far, inside, 0.0).to(tl.float32)
    d = tl.load(x + bottom + near, inside, 0.0).to(tl.float32)
    e = tl.load(x + bottom + far, inside, 0.0).to(tl.float32)
    v = 0.75 * (0.75 * a + 0.25 * b) + 0.25 * (0.75 * d + 0.25 * e)
    tl.store(y + row.to(tl.int64) * 2 * W * C + at, v.to(y.dtype.element_ty), inside)


@triton.jit
def upsample_gradient_kernel(dy, dx, H, W, C, BLOCK: tl.constexpr):
    """Compute a piece of one row of dx: each pixel from the 4 x 4 pixels of dy that saw it."""
    row, piece = tl.program_id(0), tl.program_id(1)  # row: sample * H + y
    at = piece * BLOCK + tl.arange(0, BLOCK)
    inside = at < W * C
    c, j = at % C, at // C
    n, i = row // H, row % H
    v = tl.zeros((BLOCK,), tl.float32)
    for a in tl.static_range(4):
        # Weights 1/4, 3/4, 3/4, 1/4; past a border the pixel stands in for its missing neighbour.
        oi = 2 * i - 1 + a
        wi = tl.where((a == 0) | (a == 3), 0.25, 0.75)
        wi = tl.where(((a == 1) & (i == 0)) | ((a == 2) & (i == H - 1)), 1.0, wi)
        row_in = (oi >= 0) & (oi < 2 * H)
        base = (n * 2 * H + oi).to(tl.int64) * 2 * W * C
        for b in tl.static_range(4):
            oj = 2 * j - 1 + b
            wj = tl.where((b == 0) | (b == 3), 0.25, 0.75)
            wj = tl.where(((b == 1) & (j == 0)) | ((b == 2) & (j == W - 1)), 1.0, wj)
            there = inside & row_in & (oj >= 0) & (oj < 2 * W)
            v += wi * wj * tl.load(dy + base + oj * C + c, there, 0.0).to(tl.float32)
    tl.store(dx + row.to(tl.int64) * W * C + at, v.to(dx.dtype.element_ty), inside)


def upsample(x: Tensor) -> Tensor:
    """Upsample (N, C, H, W) channels-last -> (N, C, 2H, 2W) channels-last."""
    n, c, h, w = x.shape
    y = empty((n, c, 2 * h, 2 * w), x)
    upsample_kernel[(n * 2 * h, triton.cdiv(2 * w * c, BLOCK))](x, y, h, w, c, BLOCK)
    return y


def upsample_gradient(dy: Tensor) -> Tensor:
    """Return the transpose of `upsample`, (N, C, 2H, 2W) -> (N, C, H, W)."""
    n, c, h, w = dy.shape
    dx = empty((n, c, h // 2, w // 2), dy)
    upsample_gradient_kernel[(n * (h // 2), triton.cdiv(w // 2 * c, BLOCK))](dy, dx, h // 2, w // 2, c, BLOCK)
    return dx
