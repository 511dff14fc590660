"""Exchanges between strips, as operations: one node for autograd, the compiler and selective activation checkpointing.

Each is one collective over the ranks that share a sample, named by their process group's name. Recomputation runs them
again; as all strips compute the same, they meet in the same order then too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_groups: dict[str, dist.ProcessGroup] = {}


def known_as(group: dist.ProcessGroup) -> str:
    """Return the name by which the operations here find a group."""
    _groups[group.group_name] = group
    return group.group_name


def place(name: str) -> tuple[dist.ProcessGroup, int, int]:
    """Return a group, this process's rank in it, and its size."""
    group = _groups[name]
    return group, dist.get_rank(group), dist.get_world_size(group)


# -- rows of the neighbours ----------------------------------------------------------------


@torch.library.custom_op("neuropbr_dist::with_halo", mutates_args=())
def with_halo(x: Tensor, above: int, below: int, edge: str, name: str) -> Tensor:
    """Exchange rows, (N, C, h, W) -> (N, C, above + h + below, W); see `Strip.with_halo`."""
    rows = x.shape[2]
    if rows < max(above, below):
        raise ValueError(f"a strip of {rows} rows, of which a neighbour needs {max(above, below)}")
    from_above, from_below = Exchange(x[:, :, :below], x[:, :, rows - above :], above, below, name).wait()
    out = empty_rows(x, above + rows + below)
    out[:, :, above : above + rows] = x
    top, bottom = out[:, :, :above], out[:, :, above + rows :]
    for side, received, nearest in ((top, from_above, x[:, :, :1]), (bottom, from_below, x[:, :, -1:])):
        if received is not None:
            side.copy_(received)
        elif edge == "repeat":
            side.copy_(nearest.expand_as(side))
        else:
            side.fill_(torch.finfo(x.dtype).min if edge == "lowest" else 0.0)
    return out


@torch.library.custom_op("neuropbr_dist::halo_gradient", mutates_args=())
def halo_gradient(dy: Tensor, above: int, below: int, edge: str, name: str) -> Tensor:
    """Return the gradient of `with_halo`: what neighbours have of this strip's rows is added to them."""
    rows = dy.shape[2] - above - below
    top, bottom = dy[:, :, :above], dy[:, :, above + rows :]
    # The strip above has the gradient of this one's first `below` rows, that below of its last `above`.
    from_above, from_below = Exchange(top, bottom, below, above, name).wait()
    dx = empty_rows(dy, rows).copy_(dy[:, :, above : above + rows])
    if from_above is not None:
        dx[:, :, :below] += from_above
    elif edge == "repeat":
        dx[:, :, :1] += top.sum(2, keepdim=True)
    if from_below is not None:
        dx[:, :, rows - above :] += from_below
    elif edge == "repeat":
        dx[:, :, -1:] += bottom.sum(2, keepdim=True)
    return dx


class Exchange:
    """Rows on their way to and from the neighbours; beyond the picture's edge there are none.

    Args:
        up, down: (N, C, rows, W), for the strip above and for the strip below.
        from_above, from_below: rows that those two send.
    """

    def __init__(self, up: Tensor, down: Tensor, from_above: int, from_below: int, name: str) -> None:
        group, index, count = place(name)
        self.shapes: dict[int, tuple[int, ...]] = {}
        parcels, sent, taken = [], [0] * count, [0] * count
        for neighbour, parcel, rows in ((index - 1, up, from_above), (index + 1, down, from_below)):
            if 0 <= neighbour < count:
                n, c, _, w = parcel.shape
                # Channels last, as the pictures are: a neighbour's rows are then one piece of memory to copy.
                parcels.append(parcel.permute(0, 2, 3, 1).reshape(-1))
                self.shapes[neighbour - index] = (n, rows, w, c)
                sent[neighbour], taken[neighbour] = parcel.numel(), n * rows * w * c
        self.sent = parcels[0].contiguous() if len(parcels) == 1 else torch.cat(parcels)
        self.received = up.new_empty(sum(taken))
        work = dist.all_to_all_single(self.received, self.sent, taken, sent, group, async_op=True)
        assert work is not None  # only a rank outside of the group has nothing to wait for
        self.work = work

    def wait(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the rows of the strip above and of that below, (N, C, rows, W) each, channels last in memory."""
        self.work.wait()
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        rows = dict(zip(self.shapes, self.received.split(sizes), strict=True))
        above, below = (
            rows[side].view(self.shapes[side]).permute(0, 3, 1, 2) if side in rows else None
            for side in (-1, 1)
        )
        return above, below


def empty_rows(x: Tensor, rows: int) -> Tensor:
    """Return an uninitialised tensor with another number of rows, in the memory format of `x` (N, C, H, W)."""
    channels_last = x.stride(1) == 1
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (*x.shape[:2], rows, x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


@with_halo.register_fake
def _(x: Tensor, above: int, below: int, edge: str, name: str) -> Tensor:
    return empty_rows(x, above + x.shape[2] + below)


@halo_gradient.register_fake
def _(dy: Tensor, above: int, below: int, edge: str, name: str) -> Tensor:
    return empty_rows(dy, dy.shape[2] - above - below)


def _keep_halo(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    ctx.how = inputs[1:]


def _halo_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None, None]:
    return halo_gradient(dy, *ctx.how), None, None, None, None


with_halo.register_autograd(_halo_gradient, setup_context=_keep_halo)


# -- what every strip holds ----------------------------------------------------------------


@torch.library.custom_op("neuropbr_dist::gathered", mutates_args=())
def gathered(x: Tensor, count: int, name: str) -> Tensor:
    """Gather all strips' tensors, (…) -> (count, …); see `Strip.gathered`."""
    group, _, _ = place(name)
    out = x.new_empty(count, x.numel())
    dist.all_gather_into_tensor(out.view(-1), x.contiguous().view(-1), group)
    return out.view(count, *x.shape)


@torch.library.custom_op("neuropbr_dist::gathered_gradient", mutates_args=())
def gathered_gradient(dy: Tensor, name: str) -> Tensor:
    """Return the gradient of `gathered`: the sum of what all strips have of this one's part."""
    group, _, _ = place(name)
    dy = dy.contiguous()
    received = torch.empty_like(dy)
    dist.all_to_all_single(received.view(-1), dy.view(-1), group=group)
    return received.sum(0)


@gathered.register_fake
def _(x: Tensor, count: int, name: str) -> Tensor:
    return x.new_empty(count, *x.shape)


@gathered_gradient.register_fake
def _(dy: Tensor, name: str) -> Tensor:
    return dy.new_empty(dy.shape[1:])


def _keep_name(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    ctx.name = inputs[-1]


def _gathered_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    return gathered_gradient(dy, ctx.name), None, None


gathered.register_autograd(_gathered_gradient, setup_context=_keep_name)


# -- tokens between rows and heads ---------------------------------------------------------


@torch.library.custom_op("neuropbr_dist::to_heads", mutates_args=())
def to_heads(tokens: Tensor, count: int, name: str) -> Tensor:
    """Exchange rows for heads, (B, N, S, H, D) -> (B, count * N, S, H / count, D); see `Strip.to_heads`
    (DeepSpeed-Ulysses, Jacobs et al. 2023)."""
    b, n, s, h, d = tokens.shape
    sent = tokens.view(b, n, s, count, h // count, d).permute(3, 0, 1, 2, 4, 5)
    return all_to_all(sent, name).transpose(0, 1).reshape(b, count * n, s, h // count, d).contiguous()


@torch.library.custom_op("neuropbr_dist::to_rows", mutates_args=())
def to_rows(tokens: Tensor, count: int, name: str) -> Tensor:
    """Exchange heads for rows, (B, count * N, S, h, D) -> (B, N, S, count * h, D); see `Strip.to_rows`."""
    b, n, s, h, d = tokens.shape
    sent = tokens.unflatten(1, (count, n // count)).transpose(0, 1)
    return (
        all_to_all(sent, name).permute(1, 2, 3, 0, 4, 5).reshape(b, n // count, s, count * h, d).contiguous()
    )


def all_to_all(parts: Tensor, name: str) -> Tensor:
    """Send the part at k to strip k, and return what all have sent, in their order."""
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    dist.all_to_all_single(received.view(-1), parts.view(-1), group=place(name)[0])
    return received


@to_heads.register_fake
def _(tokens: Tensor, count: int, name: str) -> Tensor:
    b, n, s, h, d = tokens.shape
    return tokens.new_empty(b, count * n, s, h // count, d)


@to_rows.register_fake
def _(tokens: Tensor, count: int, name: str) -> Tensor:
    b, n, s, h, d = tokens.shape
    return tokens.new_empty(b, n // count, s, count * h, d)


def _keep_count(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    ctx.how = inputs[1:]


# Tokens only change places: the gradient goes back the way they came.
to_heads.register_autograd(
    lambda ctx, dy: (to_rows(dy.contiguous(), *ctx.how), None, None), setup_context=_keep_count
)
to_rows.register_autograd(
    lambda ctx, dy: (to_heads(dy.contiguous(), *ctx.how), None, None), setup_context=_keep_count
)
