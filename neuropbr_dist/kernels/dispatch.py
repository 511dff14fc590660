"""Conditions under which the kernels run: half precision on CUDA, outside of a compiled or exported region."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_enabled = True


def enable(on: bool) -> None:
    """Let the kernels run where they can, or nowhere (`training.kernels`). For the whole process."""
    global _enabled
    _enabled = on


def enabled() -> bool:
    """Return whether `training.kernels` lets them run."""
    return _enabled


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that an operation on `x` computes in: autocast's dtype where that is on, else its own."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):  # the meta device
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def full_precision(x: Tensor) -> Tensor:
    """Return `x` in float32; float64 stays what it is."""
    return x if x.dtype == torch.float64 else x.float()


def usable(x: Tensor) -> bool:
    """Return whether the kernels take over for an operation on `x`."""
    if not _enabled or not x.is_cuda or torch.compiler.is_compiling():
        return False
    return compute_dtype(x) in (torch.bfloat16, torch.float16)


def empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised channels-last tensor on `like`'s device and of its dtype where none is given."""
    return torch.empty(
        shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last
    )


def beside(x: Tensor, numbers: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
    """Return `numbers` (N,) on `x`'s device, and of its dtype where none is given.

    Through pinned memory: a plain copy to a GPU waits until it has done all that it was given.
    """
    host = torch.tensor(numbers, dtype=dtype or x.dtype)
    return (host.pin_memory() if x.is_cuda else host).to(x.device, non_blocking=True)


def channels_last(x: Tensor) -> Tensor:
    """Return `x` (N, C, H, W) with its channels together in memory; itself where they are.

    Also in its strides: FSDP2 hands on inputs through `view_as`, which gives a batch of one another
    batch stride. The memory is the same, but torch then takes it for channels-first, and each
    convolution turned it over and back (measured: 90 ms of a step).
    """
    x = x.contiguous(memory_format=torch.channels_last)
    if x.shape[0] == 1 and x.stride(0) != x.numel():
        # Not `x[0]`: its gradient comes back channels-first, and is turned over twice (measured: 14 ms of a step).
        x = x.squeeze(0).permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)
    return x
