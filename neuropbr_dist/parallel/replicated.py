"""A whole network on every rank: one device, or DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
        if distributed:
            # Two forward passes come before one backward: no buffer broadcast between them.
            self.ddp = DistributedDataParallel(
                self.module,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        self.replicated = distributed
        self.optimizer = ClippedAdamW(self.trained, adam, clip, fp16=dtype == torch.float16)
        self.replay: Callable[[Tensor], Tensor] | None = None
        self.recorded: tuple[int, ...] = ()

    def record(self, shape: tuple[int, ...] | None) -> None:
        """Record the passes of a training step with an input of this shape as CUDA graphs, to be replayed from now on.

        The host then launches two graphs where it launched some thousand kernels. They read and write the parameters
        and their gradients where these lie. What isn't a training pass, and other shapes, go the plain way.
        No other thread may use the device meanwhile: it would break the recording. None: nothing is replayed.
        """
        self.replay, self.recorded = None, ()  # gives the memory of earlier graphs back
        if shape is None:
            return
        # Gradients are added up on the stream of the recording; autograd orders the two, and would warn of it once.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        x = torch.zeros(shape, device=self.device)
        # A weight that is cast once for several passes would be cast outside of the graphs.
        with torch.autocast(
            self.device.type, self.dtype, enabled=self.dtype is not None, cache_enabled=False
        ):
            torch.cuda.make_graphed_callables(self.module, (x,))
        self.replay, self.recorded = self.module.forward, shape
        del (
            self.module.forward
        )  # the class's own again: names, `eval()` and frozen passes know nothing of graphs

    def __call__(self, x: Tensor) -> Tensor:
        plain = self._frozen or not torch.is_grad_enabled()
        if self.replay is not None and not plain and self.module.training and x.shape == self.recorded:
            return self.replay(x)
        forward = self.module if plain or self.ddp is None else self.ddp
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return forward(x)

    def sync_gradients(self, last: bool) -> None:
        if self.ddp is not None:
            self.ddp.require_backward_grad_sync = last

    def apply(self) -> StepResult:
        return self.optimizer.step(p.grad for p in self.trained.values())

    def piece(self, p: Tensor) -> tuple[Tensor, int]:
        return p.detach().view(-1), 0
