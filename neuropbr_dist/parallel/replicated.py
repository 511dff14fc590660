"""A whole network on every rank: one device, or DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from neuropbr_dist.parallel.network import Adam, Pass, StepResult
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
        if distributed:
            # Two forward passes come before one backward: no buffer broadcast between them. Later torch calls it this.
            later = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
            no_broadcast: dict[str, Any] = {"forward_sync_buffers" if later else "broadcast_buffers": False}
            self.ddp = DistributedDataParallel(
                self.module,
                device_ids=[device.index] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **no_broadcast,
            )
        self.replicated = distributed
        self.optimizer = ClippedAdamW(self.trained, adam, clip, fp16=dtype == torch.float16)
        self.replays: dict[Pass, Callable[[Tensor], Any]] = {}

    def record(self, passes: Sequence[Pass]) -> None:
        """Record training passes as CUDA graphs, to be replayed from now on.

        The host then launches two graphs where it launched some thousand kernels. They read and write the parameters
        and their gradients where these lie. All other passes go the plain way. One pass can't begin before the one
        before it, of the same kind, has gone back: they share their activations.
        No other thread may use the device meanwhile: it would break the recording.
        """
        self.replays = {}  # gives the memory of earlier graphs back
        if not passes:
            return
        # Gradients are added up on the stream of the recording; autograd orders the two, and would warn of it once.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        for kind in passes:
            x = torch.zeros(kind.shape, device=self.device, requires_grad=kind.frozen)
            # A weight that is cast once for several passes would be cast outside of the graphs.
            with (
                self.frozen() if kind.frozen else nullcontext(),
                torch.autocast(
                    self.device.type, self.dtype, enabled=self.dtype is not None, cache_enabled=False
                ),
            ):
                torch.cuda.make_graphed_callables(self.module, (x,))
            self.replays[kind] = self.module.forward
            # The class's own again: names, `eval()` and other passes know nothing of graphs.
            del self.module.forward

    def __call__(self, x: Tensor) -> Any:
        trains = torch.is_grad_enabled()
        replay = self.replays.get(Pass(tuple(x.shape), self._frozen))
        if replay is not None and trains and self.module.training and x.dtype == torch.float32:
            return replay(x)
        forward = self.module if self.ddp is None or self._frozen or not trains else self.ddp
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return forward(x)

    def sync_gradients(self, last: bool) -> None:
        if self.ddp is not None:
            self.ddp.require_backward_grad_sync = last

    def apply(self) -> StepResult:
        return self.optimizer.step(p.grad for p in self.trained.values())

    def piece(self, p: Tensor) -> tuple[Tensor, int]:
        return p.detach().view(-1), 0
