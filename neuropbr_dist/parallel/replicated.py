"""A whole network on every rank: one device, or DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from neuropbr_dist.graphs import unrecorded
from neuropbr_dist.parallel.network import Adam, StepResult
from neuropbr_dist.parallel.optimizer import ClippedAdamW, ClippedNetwork


class ReplicatedNetwork(ClippedNetwork):
    """`--engine single` and `--engine ddp`.

    Args:
        module: with its segments prepared; moved to `device` here.
        dtype: autocast dtype, or None to compute in the parameters' own.
        distributed: average gradients over ranks with DDP.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        adam: Adam,
        clip: float | None,
        dtype: torch.dtype | None,
        distributed: bool,
    ) -> None:
        self.module = module.to(device)
        self.device, self.dtype = device, dtype
        self.world = dist.get_world_size() if distributed else 1
        self.trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.ddp: DistributedDataParallel | None = None
        """Averages gradients during the backward; None: on one rank, or they are averaged after it."""
        self.replicated = distributed
        self.optimizer = ClippedAdamW(self.trained, adam, clip, fp16=dtype == torch.float16)

    def reduce_gradients(self, *, at_once: bool) -> None:
        """Average gradients over the ranks by one operation after the backward, or by DDP, piece by piece during it.

        DDP's hooks belong to the default stream, so that no CUDA graph can hold them.
        """
        self.ddp = None  # takes its hooks away
        if not self.replicated or at_once:
            return
        # Two forward passes come before one backward: no buffer broadcast between them. Later torch calls it this.
        later = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
        no_broadcast: dict[str, Any] = {"forward_sync_buffers" if later else "broadcast_buffers": False}
        self.ddp = DistributedDataParallel(
            self.module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **no_broadcast,
        )

    def __call__(self, x: Tensor) -> Any:
        trains = torch.is_grad_enabled() and not self._frozen
        forward = self.ddp if self.ddp is not None and trains else self.module
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return forward(x)

    def sync_gradients(self, last: bool) -> None:
        if self.ddp is not None:
            self.ddp.require_backward_grad_sync = last

    def apply(self) -> StepResult:
        grads = [p.grad for p in self.trained.values()]
        if self.replicated and self.ddp is None:
            grads = averaged(grads, self.world)
        return self.optimizer.step(grads)

    def piece(self, p: Tensor) -> tuple[Tensor, int]:
        return p.detach().view(-1), 0


def averaged(grads: Sequence[Tensor | None], world: int) -> list[Tensor | None]:
    """Return the means of gradients over all ranks, which miss the same ones. Collective."""
    present = [grad for grad in grads if grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in present]).div_(world)
    unrecorded(partial(dist.all_reduce, flat))
    means = iter(flat.split([grad.numel() for grad in present]))
    return [None if grad is None else next(means).view(grad.shape) for grad in grads]
