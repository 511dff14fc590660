"""A whole network on every rank: one device, or DistributedDataParallel."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext

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
        self.ddp = self.reducing() if distributed else None
        self.replicated = distributed
        self.optimizer = ClippedAdamW(self.trained, adam, clip, fp16=dtype == torch.float16)
        self.replays: dict[Pass, Callable[[Tensor], Tensor]] = {}

    def reducing(self) -> DistributedDataParallel:
        """Return the module, reducing its gradients over the ranks as they come. Collective."""
        # Two forward passes come before one backward: no buffer broadcast between them.
        return DistributedDataParallel(
            self.module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

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
        distributed, self.ddp = self.ddp is not None, None
        gc.collect()  # what DDP hangs on the parameters belongs to the default stream, which can't be recorded (measured)
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
        self.ddp = self.reducing() if distributed else None

    def __call__(self, x: Tensor) -> Tensor:
        training = torch.is_grad_enabled()
        ddp = None if self._frozen or not training else self.ddp
        if training and self.module.training and x.dtype == torch.float32:
            replay = self.replays.get(Pass(tuple(x.shape), self._frozen))
            if replay is not None:
                return replay(x) if ddp is None else self.reduced(replay, x)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return (ddp or self.module)(x)

    def reduced(self, replay: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Replay a pass whose gradients DDP reduces: it awaits them from its own forward on."""
        assert self.ddp is not None
        self.module.forward = replay  # type: ignore[method-assign]
        try:
            return self.ddp(x)
        finally:
            del self.module.forward

    def sync_gradients(self, last: bool) -> None:
        if self.ddp is not None:
            self.ddp.require_backward_grad_sync = last

    def apply(self) -> StepResult:
        return self.optimizer.step(p.grad for p in self.trained.values())

    def piece(self, p: Tensor) -> tuple[Tensor, int]:
        return p.detach().view(-1), 0
