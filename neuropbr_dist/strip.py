"""A picture that several processes share by rows: what a layer or a loss may ask of those who hold the rest.

Whoever needs neighbouring rows, or a sum over all of them, takes a `Strip`; None, everywhere the default, is a picture
that is whole. How the others are reached stands in `parallel.strips`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
from torch import Tensor

Edge = Literal["zeros", "lowest", "repeat"]
"""Values beyond the picture's first and last row: zeros; the smallest number there is; that row again."""


class Pending(Protocol):
    """Rows of the neighbours that are on their way."""

    def wait(self) -> tuple[Tensor | None, Tensor | None]:
        """Return those of the strip above and of the strip below; None beyond the picture's edge."""
        ...


def strip_rows(index: int, count: int, height: int) -> tuple[int, int]:
    """Return the first row of a strip, and the one after its last, of `count` in a picture of `height` rows."""
    each = height // count
    return index * each, (index + 1) * each


class Strip(ABC):
    """One of several strips of equally many rows. Every method is called on all of them, in the same order.

    All methods but `exchange` can be differentiated once: a gradient goes to the process that holds the rows.
    """

    index: int
    """Counted from the picture's top, from 0."""
    count: int
    """Strips in a picture."""

    @property
    def first(self) -> bool:
        """Whether the strip begins at the picture's upper edge."""
        return self.index == 0

    @property
    def last(self) -> bool:
        """Whether the strip ends at the picture's lower edge."""
        return self.index == self.count - 1

    def rows(self, height: int) -> tuple[int, int]:
        """Return the first of the strip's rows and the one after its last, of a picture of `height` rows."""
        return strip_rows(self.index, self.count, height)

    @abstractmethod
    def with_halo(self, x: Tensor, above: int, below: int, edge: Edge = "zeros") -> Tensor:
        """Return the strip with rows of its neighbours: (N, C, h, W) -> (N, C, above + h + below, W).

        Raises:
            ValueError: a strip has fewer rows than its neighbour asks for.
        """

    @abstractmethod
    def exchange(self, first: Tensor, last: Tensor, above: int, below: int) -> Pending:
        """Send rows to the neighbours and begin to receive theirs, while the caller goes on.

        Args:
            first, last: (N, C, rows, W), for the strip above and for the strip below.
            above, below: rows that those two send.
        """

    @abstractmethod
    def gathered(self, x: Tensor) -> Tensor:
        """Return what every strip holds, tensors of one shape, in their order: (…) -> (count, …)."""

    def whole(self, x: Tensor) -> Tensor:
        """Return the whole picture, on every process: (N, C, h, W) -> (N, C, count * h, W)."""
        return self.gathered(x).movedim(0, 2).flatten(2, 3)

    def share(self, x: Tensor) -> Tensor:
        """Return the share () of the picture's rows that `x` (N, C, h, W) has; strips may have unequally many."""
        rows = torch.full((), x.shape[2], dtype=x.dtype, device=x.device)
        return rows / self.gathered(rows).sum()

    @abstractmethod
    def to_heads(self, tokens: Tensor) -> Tensor:
        """Return all strips' tokens for a share of the heads: (B, N, S, H, D) -> (B, count * N, S, H / count, D)."""

    @abstractmethod
    def to_rows(self, tokens: Tensor) -> Tensor:
        """Undo `to_heads`: (B, count * N, S, H / count, D) -> (B, N, S, H, D)."""
