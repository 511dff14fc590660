"""Pictures cut into strips over the ranks of a gloo group, and what layers make of them beside the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neuropbr_dist.parallel.strips import RankStrip, share_rows


@cache
def world_strip() -> RankStrip:
    """This rank's strip where all ranks share a sample."""
    assert dist.group.WORLD is not None
    return RankStrip(dist.group.WORLD)


def picture(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def own_rows(whole: Tensor, strip: RankStrip) -> Tensor:
    """This rank's strip of (N, C, H, W), a leaf."""
    rows = slice(*strip.rows(whole.shape[2]))
    own = whole[:, :, rows].contiguous(memory_format=torch.channels_last)
    return own.detach().clone().requires_grad_()


def whole_of(own: Tensor, dim: int = 2) -> Tensor:
    """All ranks' rows, which need not be equally many."""
    pieces: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pieces, own.detach())
    return torch.cat(pieces, dim)


def summed(own: Tensor) -> Tensor:
    """The sum over the ranks."""
    pieces: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pieces, own.detach())
    return torch.stack(pieces).sum(0)


def compare_layer(
    module: nn.Module, inputs: Sequence[Tensor], call: Callable[..., Any] | None = None, bound: float = 1e-12
) -> None:
    """Outputs, and gradients of inputs and parameters, in strips against those of the whole pictures.

    Args:
        inputs: whole, (N, C, H, W).
        call: what is asked of the module, `call(module, *inputs)`; gives tensors (N, C, H', W').
    """
    strip, call = world_strip(), call or (lambda m, *xs: m(*xs))
    plain, shared = module.double(), deepcopy(module).double()
    share_rows(shared, strip)
    whole_in = [x.clone().requires_grad_() for x in inputs]
    own_in = [own_rows(x, strip) for x in inputs]
    wanted, found = as_tuple(call(plain, *whole_in)), as_tuple(call(shared, *own_in))
    starts = []
    for ours, theirs in zip(found, wanted, strict=True):
        close(whole_of(ours), theirs, bound)
        heights = gathered_heights(ours)
        starts.append(sum(heights[: strip.index]))
    weights = [picture(*w.shape, seed=7 + i) for i, w in enumerate(wanted)]
    own_weights = [w[:, :, at : at + f.shape[2]] for w, f, at in zip(weights, found, starts, strict=True)]
    torch.autograd.backward(list(wanted), weights)
    torch.autograd.backward(list(found), own_weights)
    for ours, theirs in zip(own_in, whole_in, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        close(whole_of(ours.grad), theirs.grad, bound)
    for (name, ours), theirs in zip(shared.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            close(summed(ours.grad), theirs.grad, bound)


def gathered_heights(own: Tensor) -> list[int]:
    pieces: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pieces, own.shape[2])
    return pieces


def as_tuple(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def close(found: Tensor, wanted: Tensor, bound: float) -> None:
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    scale = wanted.abs().max().clamp(min=1e-30)
    difference = float((found - wanted).detach().abs().max() / scale)
    assert difference <= bound, difference
