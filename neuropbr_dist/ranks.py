"""What ranks tell each other on the host: objects, and errors. Our own processes only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from neuropbr_dist.errors import UserError

T = TypeVar("T")


def is_rank_0() -> bool:
    """Whether this is rank 0, or there is no process group."""
    return not dist.is_initialized() or dist.get_rank() == 0


def all_gather_object(value: T) -> list[T]:
    """Return `value` of every rank, in rank order. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def broadcast_object(value: T) -> T:
    """Return rank 0's `value` on every rank. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_rank_0(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 alone and return what it returns on every rank. Collective.

    Raises:
        UserError: what rank 0's call raised, on every rank.
    """
    found: T | UserError | None = None
    if is_rank_0():
        try:
            found = function()
        except UserError as error:
            found = error
    found = broadcast_object(found)
    if isinstance(found, UserError):
        raise found
    return found  # type: ignore[return-value]


def barrier() -> None:
    """Wait for every rank, on the host."""
    all_gather_object(None)
