"""Exchanges between ranks on the host: objects, and errors. Between our own processes: objects are pickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch.distributed as dist

from neuropbr_dist.errors import UserError

T = TypeVar("T")
Group = dist.ProcessGroup | None
"""None: all ranks."""
Told = tuple[str, bool]
"""An error as other ranks hear of it: what it says, and whether a person can mend it."""


def rank(group: Group = None) -> int:
    """Return this process's rank; 0 without a process group."""
    return dist.get_rank(group) if dist.is_initialized() else 0


def world_size(group: Group = None) -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def is_rank_0(group: Group = None) -> bool:
    """Return whether this is rank 0, or there is no process group."""
    return rank(group) == 0


def all_gather_object(value: T, group: Group = None) -> list[T]:
    """Return `value` of every rank, in rank order. Collective."""
    if world_size(group) == 1:
        return [value]
    found: list[Any] = [None] * world_size(group)
    dist.all_gather_object(found, value, group)
    return found


def broadcast_object(value: T, group: Group = None) -> T:
    """Return rank 0's `value` on every rank. Collective."""
    if world_size(group) == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, group=group, group_src=0)
    return box[0]


def barrier(group: Group = None) -> None:
    """Wait for every rank, on the host. Collective."""
    all_gather_object(None, group)


def on_rank_0(function: Callable[[], T], group: Group = None) -> T:
    """Call `function` on rank 0 alone and return what it returns on every rank. Collective.

    Raises:
        UserError: on every rank, if the call raised a UserError or an OSError.
        RuntimeError: on every rank, if it raised anything else.
    """
    return broadcast_object(on_each_rank(function if is_rank_0(group) else _nothing, group), group)


def on_each_rank(function: Callable[[], T], group: Group = None) -> T:
    """Call `function` on every rank and return this rank's own result once all have one. Collective.

    Raises:
        UserError: on every rank, if some rank's call raised a UserError or an OSError.
        RuntimeError: on every rank, if it raised anything else.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = function()
    except Exception as caught:  # any error: a rank that left here alone would hang its peers
        error = caught
    told = all_gather_object(_told(error) if error else None, group)
    errors = {number: one for number, one in enumerate(told) if one is not None}
    if errors:
        raise _joined(errors) from error
    return result  # type: ignore[return-value]


def joint_error(errors: Mapping[int, BaseException], prefix: str = "") -> Exception:
    """Return one exception for what went wrong on some ranks: a UserError if a person can mend all of it."""
    return _joined({number: _told(error) for number, error in errors.items()}, prefix)


def _joined(errors: Mapping[int, Told], prefix: str = "") -> Exception:
    alike = len(set(errors.values())) == 1
    texts = [text if alike else f"rank {number}: {text}" for number, (text, _) in errors.items()]
    message = prefix + "; ".join(dict.fromkeys(texts))
    return UserError(message) if all(mendable for _, mendable in errors.values()) else RuntimeError(message)


def _told(error: BaseException) -> Told:
    mendable = isinstance(error, UserError | OSError)
    return str(error) if mendable else f"{type(error).__name__}: {error}", mendable


def _nothing() -> Any:
    return None
