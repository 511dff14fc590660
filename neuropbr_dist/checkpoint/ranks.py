"""Agreement between ranks: all of them get the result, or all of them get the error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from neuropbr_dist.errors import UserError

T = TypeVar("T")


class Ranks:
    """The ranks of a process group; a single process where torch.distributed isn't initialised.

    Args:
        process_group: None for all ranks.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self.group = process_group
        in_group = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size(process_group) if in_group else 1
        self.rank = dist.get_rank(process_group) if in_group else 0
        self.is_first = self.rank == 0

    def each(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank; return this rank's own result once all have one. Collective.

        Raises:
            UserError: on all ranks, if some rank's work raised a UserError or an OSError.
            RuntimeError: on all ranks, if it raised anything else.
        """
        result: T | None = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as caught:  # any error: a rank that left here alone would hang its peers
            error = caught
        errors = {rank: found for rank, found in enumerate(self._exchange(error)) if found is not None}
        if errors:
            raise joint_error(errors) from error
        return result  # type: ignore[return-value]

    def gather(self, work: Callable[[], T]) -> list[T]:
        """Run `work` on every rank; return every rank's result on every rank. Collective; raises as `each`."""
        return self._exchange(self.each(work))

    def from_first(self, work: Callable[[], T]) -> T:
        """Run `work` on the first rank and return its result on every rank. Collective; raises as `each`."""
        return self.gather(lambda: work() if self.is_first else None)[0]  # type: ignore[return-value]

    def _exchange(self, value: Any) -> list[Any]:
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values


def joint_error(errors: dict[int, BaseException], prefix: str = "") -> Exception:
    """One exception for what went wrong on some ranks: a UserError if a person can mend all of it."""
    same = len({str(error) for error in errors.values()}) == 1
    texts = [_text(error) if same else f"rank {rank}: {_text(error)}" for rank, error in errors.items()]
    message = prefix + "; ".join(dict.fromkeys(texts))
    mendable = all(isinstance(error, (UserError, OSError)) for error in errors.values())
    return UserError(message) if mendable else RuntimeError(message)


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, (UserError, OSError)) else f"{type(error).__name__}: {error}"
