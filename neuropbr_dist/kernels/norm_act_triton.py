"""Triton kernels of `norm_act`: tensors are read as (N, P, C), P = H * W pixels, channels together.

Forward: sums per chunk of pixels, their merge into a scale and shift a channel, the result.
Backward: the same three steps for the gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuropbr_dist.strip import Strip

PROGRAMS = 2112  # enough for every multiprocessor of a large GPU to have several
TILE = 8192  # elements a program holds at once
GRADIENT_TILE = 4096  # the same of the gradient's kernel: its two tensors are up to 30 % faster so on an H200
LONG = 4  # turns from which on a summing program keeps its pixels apart, and adds them up once at its end


class Statistics(NamedTuple):
    """Statistics of every sample: `scale` and `shift` (N, C), so that the norm is `x * scale + shift`;
    mean, 1/std (N, G)."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    rstd: Tensor


class Tiles(NamedTuple):
    """Cut of (N, P, C): `chunks` programs along P, `blocks` along C; `rows` of a program's sums."""

    n: int
    p: int
    c: int
    block_p: int
    block_c: int
    chunk: int
    chunks: int
    blocks: int
    rows: int


def tiles(n: int, p: int, c: int) -> Tiles:
    """Return a cut of (n, p, c) that keeps a large GPU busy."""
    block_c = min(triton.next_power_of_2(c), 128)
    block_p = TILE // block_c
    blocks = triton.cdiv(c, block_c)
    wanted = max(1, PROGRAMS // (n * blocks))
    chunk = triton.cdiv(triton.cdiv(p, wanted), block_p) * block_p
    rows = block_p if chunk >= LONG * block_p else 1
    return Tiles(n, p, c, block_p, block_c, chunk, triton.cdiv(p, chunk), blocks, rows)


def tiles_of(x: Tensor) -> Tiles:
    """Return the cut of `x` (N, C, H, W)."""
    n, c, h, w = x.shape
    return tiles(n, h * w, c)


@triton.jit
def plus(sums, values, ROWS: tl.constexpr):
    """Add `values` (BP, BC) to `sums` (ROWS, BC), ROWS = BP or 1: a sum over pixels goes through shared memory."""
    if ROWS == 1:
        sums += tl.sum(values, 0)[None, :]
    else:
        sums += values
    return sums


@triton.jit
def sums_kernel(x, s1, s2, P, C, CHUNK, chunks, ROWS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Sum x and x * x over a chunk of pixels, a channel each."""
    chunk, block, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = block * BC + tl.arange(0, BC)
    in_c = c < C
    a1 = tl.zeros((ROWS, BC), tl.float32)
    a2 = tl.zeros((ROWS, BC), tl.float32)
    base = n.to(tl.int64) * P
    for start in range(0, CHUNK, BP):
        p = chunk * CHUNK + start + tl.arange(0, BP)
        at = (base + p)[:, None] * C + c[None, :]
        v = tl.load(x + at, (p < P)[:, None] & in_c[None, :], 0.0).to(tl.float32)
        a1 = plus(a1, v, ROWS)
        a2 = plus(a2, v * v, ROWS)
    out = (n * chunks + chunk) * C + c
    tl.store(s1 + out, tl.sum(a1, 0), in_c)
    tl.store(s2 + out, tl.sum(a2, 0), in_c)


@triton.jit
def merged_sums(s1, s2, n, c, in_g, C, chunks, BG: tl.constexpr, BK: tl.constexpr):
    """Add up chunk sums of a group's channels. In float64: a variance is the small difference of large sums."""
    a1 = tl.zeros((BG,), tl.float64)
    a2 = tl.zeros((BG,), tl.float64)
    for start in range(0, chunks, BK):
        k = start + tl.arange(0, BK)
        at = (n * chunks + k)[:, None] * C + c[None, :]
        inside = (k < chunks)[:, None] & in_g[None, :]
        a1 += tl.sum(tl.load(s1 + at, inside, 0.0).to(tl.float64), 0)
        a2 += tl.sum(tl.load(s2 + at, inside, 0.0).to(tl.float64), 0)
    return a1, a2


@triton.jit
def statistics_kernel(
    s1, s2, weight, bias, scale, shift, mean, rstd, C, G, chunks, count, eps, GS,
    BG: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Turn chunk sums of one group of one sample into its mean and 1/std, scale and shift of its channels."""
    g, n = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, BG)
    c = g * GS + lane
    in_g = lane < GS
    a1, a2 = merged_sums(s1, s2, n, c, in_g, C, chunks, BG, BK)
    m = tl.sum(a1, 0) / count
    var = (tl.sum(a2, 0) / count - m * m).to(tl.float32)
    m = m.to(tl.float32)
    r = 1.0 / tl.sqrt(tl.maximum(var, 0.0) + eps)
    tl.store(mean + n * G + g, m)
    tl.store(rstd + n * G + g, r)
    w = tl.load(weight + c, in_g, 0.0).to(tl.float32) * r
    b = tl.load(bias + c, in_g, 0.0).to(tl.float32) - m * w
    tl.store(scale + n * C + c, w, in_g)
    tl.store(shift + n * C + c, b, in_g)


@triton.jit
def apply_kernel(
    x, residual, y, scale, shift, P, C, slope,
    RESIDUAL: tl.constexpr, ACT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute y = activation(x * scale + shift + residual)."""
    tile, block, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = block * BC + tl.arange(0, BC)
    p = tile * BP + tl.arange(0, BP)
    in_c = c < C
    inside = (p < P)[:, None] & in_c[None, :]
    at = (n.to(tl.int64) * P + p)[:, None] * C + c[None, :]
    w = tl.load(scale + n * C + c, in_c, 0.0)
    b = tl.load(shift + n * C + c, in_c, 0.0)
    v = tl.load(x + at, inside, 0.0).to(tl.float32) * w[None, :] + b[None, :]
    if RESIDUAL:
        v += tl.load(residual + at, inside, 0.0).to(tl.float32)
    if ACT:
        v = tl.where(v > 0, v, v * slope)
    tl.store(y + at, v.to(y.dtype.element_ty), inside)


@triton.jit
def gradient_sums_kernel(
    dy, x, mask, dz, scale, shift, mean, rstd, s1, s2, P, C, G, GS, CHUNK, chunks, slope,
    MASK: tl.constexpr, ACT: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sum dz and dz * (x - mean) / std over a chunk; store dz, the gradient before the activation, where wanted."""
    chunk, block, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = block * BC + tl.arange(0, BC)
    in_c = c < C
    g = n * G + c // GS
    m = tl.load(mean + g, in_c, 0.0)
    r = tl.load(rstd + g, in_c, 0.0)
    w = tl.load(scale + n * C + c, in_c, 0.0)
    b = tl.load(shift + n * C + c, in_c, 0.0)
    a1 = tl.zeros((ROWS, BC), tl.float32)
    a2 = tl.zeros((ROWS, BC), tl.float32)
    base = n.to(tl.int64) * P
    for start in range(0, CHUNK, BP):
        p = chunk * CHUNK + start + tl.arange(0, BP)
        inside = (p < P)[:, None] & in_c[None, :]
        at = (base + p)[:, None] * C + c[None, :]
        d = tl.load(dy + at, inside, 0.0).to(tl.float32)
        v = tl.load(x + at, inside, 0.0).to(tl.float32)
        if ACT:
            if MASK:
                z = tl.load(mask + at, inside, 0.0).to(tl.float32)
            else:
                z = v * w[None, :] + b[None, :]
            d = tl.where(z > 0, d, d * slope)
        if KEEP:
            tl.store(dz + at, d.to(dz.dtype.element_ty), inside)
        a1 = plus(a1, d, ROWS)
        a2 = plus(a2, d * ((v - m[None, :]) * r[None, :]), ROWS)
    out = (n * chunks + chunk) * C + c
    tl.store(s1 + out, tl.sum(a1, 0), in_c)
    tl.store(s2 + out, tl.sum(a2, 0), in_c)


@triton.jit
def gradient_means_kernel(
    s1, s2, weight, sum1, sum2, mean1, mean2, C, G, chunks, count, GS, BG: tl.constexpr, BK: tl.constexpr
):
    """Turn chunk sums of one group of one sample into sums a channel, and their weighted means over the group."""
    g, n = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, BG)
    c = g * GS + lane
    in_g = lane < GS
    a1, a2 = merged_sums(s1, s2, n, c, in_g, C, chunks, BG, BK)
    w = tl.load(weight + c, in_g, 0.0).to(tl.float64)
    tl.store(sum1 + n * C + c, a1.to(tl.float32), in_g)
    tl.store(sum2 + n * C + c, a2.to(tl.float32), in_g)
    tl.store(mean1 + n * G + g, (tl.sum(a1 * w, 0) / count).to(tl.float32))
    tl.store(mean2 + n * G + g, (tl.sum(a2 * w, 0) / count).to(tl.float32))


@triton.jit
def gradient_kernel(
    dy, x, dx, scale, shift, mean, rstd, mean1, mean2, P, C, G, GS, slope,
    ACT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute dx = scale * dz - (mean1 + (x - mean) / std * mean2) / std."""
    tile, block, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = block * BC + tl.arange(0, BC)
    p = tile * BP + tl.arange(0, BP)
    in_c = c < C
    inside = (p < P)[:, None] & in_c[None, :]
    at = (n.to(tl.int64) * P + p)[:, None] * C + c[None, :]
    g = n * G + c // GS
    m = tl.load(mean + g, in_c, 0.0)
    r = tl.load(rstd + g, in_c, 0.0)
    m1 = tl.load(mean1 + g, in_c, 0.0)
    m2 = tl.load(mean2 + g, in_c, 0.0)
    w = tl.load(scale + n * C + c, in_c, 0.0)
    d = tl.load(dy + at, inside, 0.0).to(tl.float32)
    v = tl.load(x + at, inside, 0.0).to(tl.float32)
    if ACT:
        b = tl.load(shift + n * C + c, in_c, 0.0)
        d = tl.where(v * w[None, :] + b[None, :] > 0, d, d * slope)
    normed = (v - m[None, :]) * r[None, :]
    out = d * w[None, :] - r[None, :] * (m1[None, :] + normed * m2[None, :])
    tl.store(dx + at, out.to(dx.dtype.element_ty), inside)


def statistics(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, strip: Strip | None = None
) -> Statistics:
    """Return the statistics of x (N, C, H, W) channels-last; of the whole picture where it is a strip of one."""
    t = tiles_of(x)
    size = t.c // groups
    sums = x.new_empty((2, t.n, t.chunks, t.c), dtype=torch.float32)
    sums_kernel[(t.chunks, t.blocks, t.n)](
        x, *sums, t.p, t.c, t.chunk, t.chunks, t.rows, t.block_p, t.block_c
    )  # fmt: skip
    scale, shift = x.new_empty((2, t.n, t.c), dtype=torch.float32)
    mean, rstd = x.new_empty((2, t.n, groups), dtype=torch.float32)
    lanes = triton.next_power_of_2(size)
    if strip is not None:
        sums = of_all_strips(strip, sums, t.p)
    statistics_kernel[(groups, t.n)](
        *sums, weight, bias, scale, shift, mean, rstd, t.c, groups, sums.shape[2], float(t.p * size), eps, size, lanes,
        chunks_at_once(lanes),
    )  # fmt: skip
    return Statistics(scale, shift, mean, rstd)


def of_all_strips(strip: Strip, sums: Tensor, pixels: int) -> Tensor:
    """Return chunk sums (2, N, chunks, C) of all strips as one chunk, float64, scaled to this strip's number of pixels.

    So a mean over the picture is their sum over the pixels that this strip has. As few launches as there can be: it is
    done twice for every norm, where the host is what the device waits for.
    """
    two, n, _, c = sums.shape
    own = sums.new_empty(two * n * c + 1, dtype=torch.float64)
    torch.sum(sums, 2, dtype=torch.float64, out=own[:-1].view(two, n, c))
    own[-1:].fill_(pixels)
    total = strip.gathered(own).sum(0)
    return (total[:-1] * pixels / total[-1]).view(two, n, 1, c)


def chunks_at_once(lanes: int) -> int:
    """Return how many chunks a merging program reads at once."""
    return max(1, 1024 // lanes)


def apply(x: Tensor, stats: Statistics, slope: float | None, residual: Tensor | None) -> Tensor:
    """Return `activation(norm(x) + residual)`, like x (N, C, H, W) channels-last."""
    t = tiles_of(x)
    y = torch.empty_like(x)
    apply_kernel[(triton.cdiv(t.p, t.block_p), t.blocks, t.n)](
        x, x if residual is None else residual, y, stats.scale, stats.shift, t.p, t.c, slope or 0.0,
        residual is not None, slope is not None, t.block_p, t.block_c,
    )  # fmt: skip
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stats: Statistics,
    mask: Tensor | None,
    slope: float | None,
    has_residual: bool,
    strip: Strip | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return gradients of x, weight, bias and residual: of a strip's own rows.

    Args:
        mask: the output, where the activation's sign can't be worked out from `x`.
    """
    t = tiles_of(x)
    groups = stats.mean.shape[1]
    size = t.c // groups
    act = slope is not None
    keep = has_residual and act
    dz = torch.empty_like(dy) if keep else dy
    sums = x.new_empty((2, t.n, t.chunks, t.c), dtype=torch.float32)
    gradient_sums_kernel[(t.chunks, t.blocks, t.n)](
        dy, x, x if mask is None else mask, dz, *stats, *sums, t.p, t.c, groups, size, t.chunk, t.chunks,
        slope or 0.0, mask is not None, act, keep, t.rows, t.block_p, t.block_c,
    )  # fmt: skip
    dweight, dbias = None, None
    if strip is not None:
        dbias, dweight = sums.sum((1, 2))
        sums = of_all_strips(strip, sums, t.p)
    sum1, sum2 = x.new_empty((2, t.n, t.c), dtype=torch.float32)
    mean1, mean2 = x.new_empty((2, t.n, groups), dtype=torch.float32)
    lanes = triton.next_power_of_2(size)
    gradient_means_kernel[(groups, t.n)](
        *sums, weight, sum1, sum2, mean1, mean2, t.c, groups, sums.shape[2], float(t.p * size), size, lanes,
        chunks_at_once(lanes),
    )  # fmt: skip
    dx = torch.empty_like(x)
    block_p = GRADIENT_TILE // t.block_c
    gradient_kernel[(triton.cdiv(t.p, block_p), t.blocks, t.n)](
        dz, x, dx, *stats, mean1, mean2, t.p, t.c, groups, size, slope or 0.0, act and not keep,
        block_p, t.block_c,
    )  # fmt: skip
    if dweight is None or dbias is None:
        dweight, dbias = sum2.sum(0), sum1.sum(0)
    return dx, dweight, dbias, dz if has_residual else None
