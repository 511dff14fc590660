"""BatchNorm over the global batch. `nn.SyncBatchNorm` refuses CPU; this one runs anywhere."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from neuropbr_dist.kernels import full_precision
from neuropbr_dist.models.norm import StepBatchNorm2d
from neuropbr_dist.strip import Strip


class SyncBatchNorm2d(StepBatchNorm2d):
    """Normalises by the mean and variance over all ranks' micro-batches (two passes)."""

    strip: Strip | None = None
    """Strip of a picture whose rows ranks share, of which one may have fewer than another; None: all have as many."""

    @property
    def group(self) -> Any:
        """The process group of the ranks that agree."""
        return dist.group.WORLD

    def batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide, group = full_precision(x), self.group
        count: Any = wide.numel() / wide.shape[1]
        if self.strip is None:
            count = count * dist.get_world_size(group)
        else:
            dist.all_reduce(count := wide.new_full((), count), group=group)
        mean = all_reduce(wide.sum((0, 2, 3)), group=group) / count
        centred = wide - mean[:, None, None]
        var = all_reduce(centred.square().sum((0, 2, 3)), group=group) / count
        scale = torch.rsqrt(var + self.eps) * self._affine(self.weight, x)
        out = centred * scale[:, None, None] + self._affine(self.bias, x)[:, None, None]
        return out.to(x.dtype), mean.detach(), (var * count / (count - 1)).detach()


def synchronise_batch_norms(module: nn.Module) -> None:
    """Make every BatchNorm of `module` agree over ranks, in place."""
    for m in module.modules():
        if type(m) is StepBatchNorm2d:
            m.__class__ = SyncBatchNorm2d


def average_running_statistics(module: nn.Module) -> None:
    """Average running statistics over ranks. Exact at any time: they move linearly."""
    stats = [
        b for m in module.modules() if isinstance(m, StepBatchNorm2d) for b in (m.running_mean, m.running_var)
    ]
    if not stats or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat(stats)
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for b, piece in zip(stats, flat.split([s.numel() for s in stats]), strict=True):
        b.copy_(piece)
