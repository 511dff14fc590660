"""Launches of a function of tensors, recorded once as a CUDA graph and replayed: for a host that can't keep up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PLAIN_CALLS = 2
"""Calls before the recording, in which compilers compile, kernels are loaded and libraries choose theirs."""


class Replay:
    """`function`, recorded at its third call and replayed from then on; the first two run as they are.

    What it reads and writes besides its arguments must lie where it lay at the recording, and what the host decides
    inside is decided for good. The recording makes everything it needs in memory of its own.

    Args:
        function: of tensors on a CUDA device, of the same shapes at every call; it must never wait for the device.
            What it returns from a replay lies where the next call's result will lie.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.arguments: tuple[Tensor, ...] = ()
        self.result: Any = None

    def __call__(self, *arguments: Tensor) -> Any:
        self.calls += 1
        if self.calls <= PLAIN_CALLS:
            return self.function(*arguments)
        if self.graph is None:
            self.arguments = tuple(given.clone() for given in arguments)
            self._record()
        else:
            for kept, given in zip(self.arguments, arguments, strict=True):
                kept.copy_(given, non_blocking=True)
        assert self.graph is not None
        self.graph.replay()
        return self.result

    def _record(self) -> None:
        # What plain calls have left in the allocator's cache would lie there unused beside the recording's own.
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # Other threads go on pinning memory and saving: only this one's calls may break the recording.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.result = self.function(*self.arguments)
        self.graph = graph
