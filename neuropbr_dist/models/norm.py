"""Normalisation layers that behave under recomputation, sharding and micro-batch 1.

Micro-batch 1 makes plain BatchNorm train on one image's statistics and evaluate
on others', and activation checkpointing runs a forward pass twice. So the
default is GroupNorm; the batch kinds here move their running statistics once
per optimizer step, whatever the number of forward passes in it.

Each layer takes what may follow it along: `norm(x, slope, residual)` is
`activation(norm(x) + residual)`, slope as in `kernels.norm_act`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from neuropbr_dist.kernels import full_precision, group_norm_act, usable
from neuropbr_dist.kernels.norm_act import activate
from neuropbr_dist.strip import Strip

NormFactory = Callable[[int], nn.Module]

# Process-global, not thread-local: on CUDA recomputation runs on autograd's thread.
_collecting = True


@contextmanager
def no_statistics() -> Iterator[None]:
    """Keep every BatchNorm from noting batch statistics inside (recomputation, frozen passes)."""
    global _collecting
    before, _collecting = _collecting, False
    try:
        yield
    finally:
        _collecting = before


class FrozenAffine(torch.autograd.Function):
    """Scale and shift (C,) of a batch norm by stored statistics: half the launches of its parts, each by itself."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        rstd = torch.rsqrt(var + eps)
        ctx.save_for_backward(mean, rstd)
        scale = weight * rstd
        return scale, torch.addcmul(bias, mean, scale, value=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dscale: Tensor, dshift: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        mean, rstd = ctx.saved_tensors
        return torch.addcmul(dscale, mean, dshift, value=-1) * rstd, dshift, None, None, None


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with stored running statistics, never updated.

    Same state names as `nn.BatchNorm2d`. Scale and shift still train unless
    frozen by the caller. Same output in train and eval mode.
    """

    running_mean: Tensor
    running_var: Tensor

    def forward(  # type: ignore[override]
        self, x: Tensor | None, slope: float | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise `x` (N, C, H, W); without `x` return the scale and shift (C,), for a convolution to take in.

        Through the layer's own call, since ZeRO-3 gathers parameters in its hooks.
        """
        # In float32 at least, whatever the parameter dtype: bf16 parameters with float32
        # statistics are refused by F.batch_norm.
        weight, bias = full_precision(self.weight), full_precision(self.bias)
        scale, shift = FrozenAffine.apply(weight, bias, self.running_mean, self.running_var, self.eps)
        if x is None:
            return scale, shift
        out = x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]
        return activate(out, slope, residual)


class StepBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose running statistics move once per `commit_statistics`.

    Training forward passes normalise by the batch's own statistics and note
    them; `commit_statistics` averages the notes of a step and moves the
    running statistics by `momentum` once.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        # Plain attributes, not buffers: nothing of a half-done step is saved.
        self._noted: list[tuple[Tensor, Tensor]] = []

    def batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised output and the batch's mean and unbiased variance."""
        mean = torch.zeros_like(self.running_mean)
        var = torch.zeros_like(self.running_var)
        return self.normalised_by(x, mean, var, own=True), mean, var

    def normalised_by(self, x: Tensor, mean: Tensor, var: Tensor, *, own: bool) -> Tensor:
        """Return the output by these statistics; with `own` by the batch's own, which are written over them."""
        weight, bias = self._affine(self.weight, x), self._affine(self.bias, x)
        return F.batch_norm(x, mean, var, weight, bias, own, float(own), self.eps)

    @staticmethod
    def _affine(p: Tensor, x: Tensor) -> Tensor:
        return p if p.dtype == x.dtype == torch.float64 else p.float()

    def forward(self, x: Tensor, slope: float | None = None, residual: Tensor | None = None) -> Tensor:
        return activate(self.normalise(x), slope, residual)

    def normalise(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.normalised_by(x, self.running_mean, self.running_var, own=False)
        out, mean, var = self.batch_statistics(x)
        if _collecting:
            self._noted.append((mean, var))
        return out


def commit_statistics(module: nn.Module) -> None:
    """Move the running statistics of every `StepBatchNorm2d` in `module` by one step.

    Those of a non-finite forward pass are left out.
    """
    for m in module.modules():
        if isinstance(m, StepBatchNorm2d) and m._noted:
            mean = torch.stack([n[0] for n in m._noted]).mean(0)
            var = torch.stack([n[1] for n in m._noted]).mean(0)
            # One bad sample would stay in the running statistics for ever.
            finite = torch.isfinite(mean).all() & torch.isfinite(var).all()
            m.running_mean.lerp_(torch.where(finite, mean, m.running_mean), m.momentum)
            m.running_var.lerp_(torch.where(finite, var, m.running_var), m.momentum)
            m.num_batches_tracked += 1
            m._noted.clear()


class FusedGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` in the dtype of its input, in forms that are fast: a kernel, or one that compiles well.

    Autocast would hand back float32, twice the bytes for every layer after it.
    """

    strip: Strip | None = None
    """Way to the other strips where the input is a strip of a picture's rows; None: it is whole."""

    def forward(self, x: Tensor, slope: float | None = None, residual: Tensor | None = None) -> Tensor:
        if torch.compiler.is_compiling() or (self.strip is not None and not usable(x)):
            return activate(self.by_channel(x), slope, residual)
        return group_norm_act(
            x, self.weight, self.bias, self.num_groups, self.eps, slope, residual, self.strip
        )

    def by_channel(self, x: Tensor) -> Tensor:
        """Return the norm alone in a form that compiles well, (N, C, H, W) -> (N, C, H, W), in float32 inside.

        The compiler's reductions over a group of a channels-last tensor are slow (measured:
        278 ms of a step), so statistics are taken per channel and merged (Chan et al. 1979).
        """
        x_wide = full_precision(x)
        groups = (x.shape[0], self.num_groups, -1)
        var, mean = (s.view(groups) for s in torch.var_mean(x_wide, (2, 3), correction=0))
        center = mean.mean(2, keepdim=True)
        spread = (var + (mean - center).square()).mean(2, keepdim=True)
        if self.strip is not None:
            center, spread = over_strips(self.strip, center, spread, x.shape[2])
        scale = torch.rsqrt(spread + self.eps) * self.weight.to(x_wide.dtype).view(1, *groups[1:])
        shift = self.bias.to(x_wide.dtype).view(1, *groups[1:]) - center * scale
        scale, shift = (s.reshape(x.shape[:2])[..., None, None] for s in (scale, shift))
        return (x_wide * scale + shift).to(x.dtype)


def over_strips(strip: Strip, mean: Tensor, var: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of all strips together from those of each; one that ends the picture may be shorter."""
    means, variances, counts = strip.gathered(torch.stack([mean, var, torch.full_like(mean, rows)])).unbind(1)
    shares = counts / counts.sum(0)
    center = (shares * means).sum(0)
    return center, (shares * (variances + (means - center).square())).sum(0)


def group_norm(channels: int) -> FusedGroupNorm:
    """Return a group norm in groups of 16 channels (Wu & He 2018, table 3).

    Not 32 groups: at the 64 channels of full resolution that is near instance
    norm, which takes away how bright a picture is, and with it the albedo.
    """
    return FusedGroupNorm(channels // math.gcd(channels, 16), channels)


def norm_factory(kind: str) -> NormFactory:
    """Return the layer for `model.norm` / `model.encoder_norm`.

    `sync_batch` builds `StepBatchNorm2d` here; parallel/ makes it agree over ranks.

    Raises:
        ValueError: `kind` is not one of group, batch, sync_batch, frozen_batch.
    """
    kinds: dict[str, NormFactory] = {
        "group": group_norm,
        "batch": StepBatchNorm2d,
        "sync_batch": StepBatchNorm2d,
        "frozen_batch": FrozenBatchNorm2d,
    }
    if kind not in kinds:
        raise ValueError(f"norm {kind!r}; allowed: {', '.join(kinds)}")
    return kinds[kind]
