"""This rank's strip of a sample, and the layers that are told of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from neuropbr_dist.models.norm import StepBatchNorm2d
from neuropbr_dist.parallel.strips import operations
from neuropbr_dist.parallel.sync_batch import SyncBatchNorm2d
from neuropbr_dist.strip import Edge, Pending, Strip


class RankStrip(Strip):
    """The strip of a rank whose neighbours in `group` hold the others, in the order of their ranks.

    It holds names and numbers only, so that a module that carries it can be copied.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.index, self.count = dist.get_rank(group), dist.get_world_size(group)
        self.name = operations.known_as(group)

    def with_halo(self, x: Tensor, above: int, below: int, edge: Edge = "zeros") -> Tensor:
        return operations.with_halo(x, above, below, edge, self.name)

    def exchange(self, first: Tensor, last: Tensor, above: int, below: int) -> Pending:
        return operations.Exchange(first, last, above, below, self.name)

    def gathered(self, x: Tensor) -> Tensor:
        return operations.gathered(x, self.count, self.name)

    def to_heads(self, tokens: Tensor) -> Tensor:
        return operations.to_heads(tokens, self.count, self.name)

    def to_rows(self, tokens: Tensor) -> Tensor:
        return operations.to_rows(tokens, self.count, self.name)

    @property
    def group(self) -> dist.ProcessGroup:
        """The ranks that share a sample."""
        return operations.place(self.name)[0]


def strip_of(sample_ranks: int, timeout: timedelta | None = None) -> RankStrip | None:
    """Return this rank's strip where `sample_ranks` neighbouring ranks share a sample; None for 1. Collective.

    Args:
        sample_ranks: a divisor of the world size.
        timeout: limit on any one exchange. None: torch's.
    """
    if sample_ranks == 1:
        return None
    group, _ = dist.new_subgroups(sample_ranks, timeout=timeout)
    return RankStrip(group)


class StripBatchNorm2d(SyncBatchNorm2d):
    """BatchNorm over a rank's micro-batch, whose pictures it shares with others."""

    strip: RankStrip

    @property
    def group(self) -> dist.ProcessGroup:
        return self.strip.group


def share_rows(module: nn.Module, strip: Strip | None) -> None:
    """Let every layer of `module` that looks beyond its own rows find them through `strip`. In place.

    Args:
        strip: None: pictures are whole again.
    """
    for m in module.modules():
        layer: Any = m
        if type(m) is StepBatchNorm2d and strip is not None:
            layer.__class__ = StripBatchNorm2d
        elif type(m) is StripBatchNorm2d and strip is None:
            layer.__class__ = StepBatchNorm2d
        if hasattr(type(layer), "strip"):
            layer.strip = strip
