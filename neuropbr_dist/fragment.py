"""One rank's piece of a named tensor: what an engine hands out, a checkpoint saves, and a load fills."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Fragment:
    """One rank's piece of a named tensor.

    Ranks may hold disjoint pieces, the same piece (replicas), or nothing. A save needs
    every element of a tensor on at least one rank, and replicas cut alike; a load may cut
    the tensor in any other way.

    Raises:
        ValueError: the piece isn't flat or doesn't lie inside the global tensor.
    """

    name: str
    """Canonical name, the same in every engine, e.g. `generator/param/encoder.stem.conv.weight`."""
    data: torch.Tensor
    """The piece, 1-D, on any device. A live view: a load writes into it in place."""
    start: int
    """Offset of the piece in the flattened global tensor, in elements."""
    shape: torch.Size
    """Shape of the global tensor; `()` for a scalar."""

    def __post_init__(self) -> None:
        self.shape = torch.Size(self.shape)
        if self.data.dim() != 1:
            raise ValueError(f"{self.name}: a fragment is 1-D, this one has shape {tuple(self.data.shape)}")
        if not 0 <= self.start <= self.start + self.data.numel() <= self.shape.numel():
            raise ValueError(
                f"{self.name}: elements {self.start} to {self.start + self.data.numel()} "
                f"lie outside of shape {tuple(self.shape)}"
            )

    @classmethod
    def whole(cls, name: str, tensor: torch.Tensor) -> Fragment:
        """Return the fragment of a rank that holds all of `tensor` (contiguous, so that a load reaches it)."""
        return cls(name, tensor.detach().view(-1), 0, tensor.shape)
