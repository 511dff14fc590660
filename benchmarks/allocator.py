"""How much of a GPU's memory torch's allocator may take."""

from __future__ import annotations

import torch

from neuropbr_dist.errors import UserError
from neuropbr_dist.training.estimate import GIB


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
