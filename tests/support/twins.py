"""Kernels and their twins, compared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def picture(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random, with a different mean a channel, leaf."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x + torch.arange(shape[1], dtype=torch.float64)[:, None, None] / 3
    return x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def compare(
    ours: Callable[..., Tensor], twin: Callable[..., Tensor], inputs: list[Tensor], bound: float = 2e-5
) -> None:
    """Outputs and all gradients, each within `bound` of its largest value; the twin in float64."""
    wide = [x.detach().double().requires_grad_() for x in inputs]
    found, wanted = ours(*inputs), twin(*wide)
    found, wanted = (r if isinstance(r, tuple) else (r,) for r in (found, wanted))
    weights = [picture(*w.shape, seed=9 + i, dtype=torch.float64).detach() for i, w in enumerate(wanted)]
    mine = torch.autograd.grad(found, inputs, [w.to(f.dtype) for w, f in zip(weights, found, strict=True)])
    theirs = torch.autograd.grad(wanted, wide, weights)
    for a, b in zip([*found, *mine], [*wanted, *theirs], strict=True):
        assert a.shape == b.shape
        assert (a.double() - b).abs().max() <= bound * b.abs().max()
