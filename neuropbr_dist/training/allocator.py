"""How torch's allocator takes a GPU's memory: how much at most, and in what pieces."""

from __future__ import annotations

import os

import torch

from neuropbr_dist.errors import UserError

GIB = 2**30


def limit_memory(device: torch.device, gib: float) -> None:
    """Leave this process as much of a GPU as it would find on one of `gib` GiB.

    What lies outside of the allocator (CUDA's own, other processes) counts, as it does there.

    Raises:
        UserError: the GPU has less, or more than that lies outside.
    """
    outside, total = outside_bytes(device), torch.cuda.mem_get_info(device)[1]
    if not outside < gib * GIB <= total:
        raise UserError(
            f"a limit of {gib:g} GiB: this GPU has {total / GIB:.1f} GiB, {outside / GIB:.1f} of them taken"
        )
    torch.cuda.set_per_process_memory_fraction((gib * GIB - outside) / total, device)


def outside_bytes(device: torch.device) -> int:
    """What is taken of a GPU besides this process's allocator: CUDA's context, loaded kernels, other processes."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def expand_segments() -> None:
    """From now on segments grow, where the allocator would take a new one for a size that none has free.

    Reserved memory stays closer to allocated: what is free inside a segment serves any size. What a person
    has set for the allocator stays.
    """
    given = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", os.environ.get("PYTORCH_ALLOC_CONF", ""))
    if "expandable_segments" not in given:
        # Settings that aren't repeated fall back to torch's defaults.
        settings = ",".join(filter(None, [given, "expandable_segments:True"]))
        # Works at any time, as the variables don't; in torch since 2.10.
        torch._C._accelerator_setAllocatorSettings(settings)
