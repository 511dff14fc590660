"""From a model to a `Network` on the chosen engine: checkpoint activations, compile, shard."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from neuropbr_dist.errors import UserError
from neuropbr_dist.parallel.blocks import plain_segments, prepare_segments
from neuropbr_dist.parallel.network import Adam, Network
from neuropbr_dist.parallel.strips import share_rows
from neuropbr_dist.parallel.sync_batch import synchronise_batch_norms
from neuropbr_dist.strip import Strip


@dataclass(frozen=True, kw_only=True)
class NetworkSetup:
    """Choices of how one network is spread over the ranks, computed and optimised."""

    engine: str
    """Engine of the network: single, ddp, fsdp or deepspeed."""
    adam: Adam
    clip: float | None
    dtype: torch.dtype | None
    """Compute dtype, or None for the parameters' own."""
    recompute: str | Mapping[str, str] = "none"
    """none, selective, full or split; or patterns of segment names to these (`blocks.kind_of`)."""
    compile_blocks: bool
    """Compile each segment."""
    replayed: bool = False
    """Whether a step's launches are recorded as a CUDA graph; engines single and ddp only."""
    sync_batch: bool = False
    shard: str = "world"
    """Ranks that FSDP shards over: world, or node (HSDP)."""
    ranks_per_node: int = 1
    cpu_offload: bool = False
    ds_file: str | None = None
    """File that `ds_config` is from, for messages."""
    ds_config: Mapping[str, Any] | None = None
    """DeepSpeed's own configuration, complete."""

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage; 0 on other engines."""
        return 0 if self.ds_config is None else self.ds_config["zero_optimization"]["stage"]


def build_network(
    module: Any, device: torch.device, setup: NetworkSetup, strip: Strip | None = None
) -> Network:
    """Spread `module` (on CPU, the same on every rank) as `setup` says. Collective.

    Args:
        strip: this rank's part of the pictures that it shares with others; None: its pictures are whole.

    Raises:
        UserError: ranks that don't divide into nodes, or a section that DeepSpeed refuses.
    """
    if setup.sync_batch and dist.is_initialized() and dist.get_world_size() > 1:
        synchronise_batch_norms(module)
    if strip is not None:
        share_rows(module, strip)
    prepare_segments(module.segments(), recompute=setup.recompute, compile_blocks=setup.compile_blocks)
    if setup.engine == "fsdp":
        from neuropbr_dist.parallel.fsdp import FSDPNetwork

        mesh = fsdp_mesh(device.type, setup)
        return FSDPNetwork(module, device, mesh, setup.adam, setup.clip, setup.dtype, setup.cpu_offload)
    if setup.engine == "deepspeed":
        from neuropbr_dist.parallel.zero import ZeRONetwork
        from neuropbr_dist.parallel.zero_section import check_zero_section

        assert setup.ds_config is not None
        check_zero_section(setup.ds_config["zero_optimization"], setup.ds_file or "ds_config")
        return ZeRONetwork(module, device, deepcopy(dict(setup.ds_config)), setup.adam)
    from neuropbr_dist.parallel.replicated import ReplicatedNetwork

    distributed = setup.engine == "ddp"
    network = ReplicatedNetwork(module, device, setup.adam, setup.clip, setup.dtype, distributed)
    network.reduce_gradients(at_once=setup.replayed)
    return network


def change_network(
    network: Network, before: NetworkSetup, after: NetworkSetup, strip: Strip | None = None
) -> None:
    """Let a network that was built for `before` compute as `after` says. Collective.

    Parameters, gradients and moments stay where they lie: what may differ is what is computed again, the batch that
    DeepSpeed counts with, and how many ranks share a sample.

    Args:
        strip: as `build_network`'s, from now on.
    """
    share_rows(network.module, strip)
    if before.compile_blocks:
        torch.compiler.reset()  # graphs of shapes that don't come again would count against the compiler's limit
    if before.recompute != after.recompute:
        plain_segments(network.module.segments())  # type: ignore[operator]
        prepare_segments(
            network.module.segments(),  # type: ignore[operator]
            recompute=after.recompute,
            compile_blocks=after.compile_blocks,
        )
    network.take_batches(after.ds_config or {})
    if before.replayed != after.replayed:
        network.reduce_gradients(at_once=after.replayed)


def fsdp_mesh(device_type: str, setup: NetworkSetup) -> DeviceMesh:
    """Return all ranks in one dimension (shard), or nodes x ranks of a node (HSDP). Collective."""
    world = dist.get_world_size()
    if setup.shard == "world":
        return init_device_mesh(device_type, (world,), mesh_dim_names=("shard",))
    if world % setup.ranks_per_node:
        raise UserError(
            f"training.shard = node: {world} ranks don't divide into nodes of {setup.ranks_per_node}; "
            "start the same number of ranks on every node, or use --shard world"
        )
    nodes = world // setup.ranks_per_node
    return init_device_mesh(device_type, (nodes, setup.ranks_per_node), mesh_dim_names=("replicate", "shard"))
