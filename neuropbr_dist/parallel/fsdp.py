"""FSDP2: parameters, gradients and optimizer state sharded by `fully_shard`."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from neuropbr_dist.parallel.network import Adam, StepResult
from neuropbr_dist.parallel.optimizer import ClippedAdamW, ClippedNetwork


class FSDPNetwork(ClippedNetwork):
    """`--engine fsdp`, one unit a segment and one for the rest.

    Args:
        module: with its segments prepared (activation checkpointing, compile).
        mesh: 1-D (shard) or 2-D (replicate, shard: HSDP).
        dtype: parameters' compute dtype, or None for their own; gradients are
            reduced in float32.
        cpu_offload: parameters, gradients and moments live in host memory.
    """

    def __init__(
        self,
        module: Any,
        device: torch.device,
        mesh: DeviceMesh,
        adam: Adam,
        clip: float | None,
        dtype: torch.dtype | None,
        cpu_offload: bool = False,
    ) -> None:
        self.module, self.device, self.dtype = module, device, dtype
        self.sharded: Any = module  # the same, with FSDP2's methods
        self.world = dist.get_world_size()
        if not cpu_offload:
            module.to(device)
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32 if dtype is not None else None
        )
        offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if cpu_offload else OffloadPolicy()
        for unit in [*module.segments().values(), module]:
            # Also on the root, whose default is to stay unsharded: a no-grad forward
            # before the optimizer step would leave the next one on old weights (measured).
            fully_shard(unit, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=True)
        for buffer in module.buffers():
            buffer.data = buffer.data.to(device)
        self.trained = [name for name, p in module.named_parameters() if p.requires_grad]
        local = {name: p.detach().to_local() for name, p in self._trained_parameters()}
        group = mesh.get_group("shard")
        self.optimizer = ClippedAdamW(local, adam, clip, group, fp16=dtype == torch.float16)

    def _trained_parameters(self) -> list[tuple[str, Any]]:
        # By name and afresh: while unsharded, parameters() yields other objects.
        params: dict[str, Any] = dict(self.module.named_parameters())
        return [(name, params[name]) for name in self.trained]

    def __call__(self, x: Tensor) -> Any:
        return self.module(x)

    def sync_gradients(self, last: bool) -> None:
        self.sharded.set_requires_gradient_sync(last)

    def apply(self) -> StepResult:
        params = [p for _, p in self._trained_parameters()]
        result = self.optimizer.step(None if p.grad is None else p.grad.to_local() for p in params)
        for p in params:
            p.grad = None
        return result

    def piece(self, p: Any) -> tuple[Tensor, int]:
        _, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
        return p.detach().to_local().view(-1), offset[0] * p.shape[1:].numel()
