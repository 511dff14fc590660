"""From a model to a `Network` on the chosen engine: checkpoint activations, compile, shard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from neuropbr_dist.errors import UserError
from neuropbr_dist.parallel.blocks import prepare_segments
from neuropbr_dist.parallel.network import Adam, Network
from neuropbr_dist.parallel.sync_batch import synchronise_batch_norms


@dataclass(kw_only=True)
class Plan:
    """How one network is spread over the ranks."""

    engine: str
    """single, ddp, fsdp or deepspeed."""
    adam: Adam
    clip: float | None
    dtype: torch.dtype | None
    """Compute dtype, or None for the parameters' own."""
    recompute: str | Mapping[str, str]
    """none, selective, full or split; or patterns of segment names to these (`blocks.kind_of`)."""
    compile_blocks: bool
    """Compile each segment."""
    sync_batch: bool = False
    shard: str = "world"
    """FSDP: world, or node (HSDP)."""
    ranks_per_node: int = 1
    cpu_offload: bool = False
    ds_config: dict[str, Any] | None = None


def build_network(module: Any, device: torch.device, plan: Plan) -> Network:
    """Spread `module` (on CPU, the same on every rank) as `plan` says."""
    if plan.sync_batch and dist.is_initialized() and dist.get_world_size() > 1:
        synchronise_batch_norms(module)
    prepare_segments(module.segments(), recompute=plan.recompute, compile_blocks=plan.compile_blocks)
    if plan.engine == "fsdp":
        from neuropbr_dist.parallel.fsdp import FSDPNetwork

        mesh = fsdp_mesh(device.type, plan)
        return FSDPNetwork(module, device, mesh, plan.adam, plan.clip, plan.dtype, plan.cpu_offload)
    if plan.engine == "deepspeed":
        from neuropbr_dist.parallel.zero import ZeRONetwork

        assert plan.ds_config is not None
        return ZeRONetwork(module, device, plan.ds_config, plan.adam)
    from neuropbr_dist.parallel.replicated import ReplicatedNetwork

    distributed = plan.engine == "ddp"
    return ReplicatedNetwork(module, device, plan.adam, plan.clip, plan.dtype, distributed)


def fsdp_mesh(device_type: str, plan: Plan) -> DeviceMesh:
    """All ranks in one dimension (shard), or nodes x ranks of a node (HSDP). Collective."""
    world = dist.get_world_size()
    if plan.shard == "world":
        return init_device_mesh(device_type, (world,), mesh_dim_names=("shard",))
    if world % plan.ranks_per_node:
        raise UserError(
            f"training.shard = node: {world} ranks don't divide into nodes of {plan.ranks_per_node}; "
            "start the same number of ranks on every node, or use --shard world"
        )
    nodes = world // plan.ranks_per_node
    return init_device_mesh(device_type, (nodes, plan.ranks_per_node), mesh_dim_names=("replicate", "shard"))
