"""Launches of a function of tensors, recorded once as CUDA graphs and replayed: for a host that can't keep up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

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

    under_way: ClassVar[Replay | None] = None
    """The one that is being recorded."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0
        self.parts: list[Callable[[], object]] = []
        """Graphs to replay, and between them what `unrecorded` has called."""
        self.arguments: tuple[Tensor, ...] = ()
        self.result: Any = None

    def __call__(self, *arguments: Tensor) -> Any:
        self.calls += 1
        if self.calls <= PLAIN_CALLS:
            return self.function(*arguments)
        if not self.parts:
            self.arguments = tuple(given.clone() for given in arguments)
            self._record()
        else:
            for kept, given in zip(self.arguments, arguments, strict=True):
                kept.copy_(given, non_blocking=True)
        for part in self.parts:
            part()
        return self.result

    def _record(self) -> None:
        torch.cuda.synchronize()
        # What plain calls have left in the allocator's cache would lie there unused beside the recording's own.
        torch.cuda.empty_cache()
        self.pool = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(torch.cuda.Stream()):
            Replay.under_way = self
            self._begin()
            try:
                self.result = self.function(*self.arguments)
            finally:
                self._end()
                Replay.under_way = None

    def _begin(self) -> None:
        self.graph = torch.cuda.CUDAGraph()
        # Other threads go on pinning memory and saving: only this one's calls may break the recording.
        self.graph.capture_begin(self.pool, capture_error_mode="thread_local")

    def _end(self) -> None:
        self.graph.capture_end()
        self.parts.append(self.graph.replay)

    def cut(self, function: Callable[[], object]) -> None:
        """Have `function` called between what is recorded before and what will be. Now nothing has run, so it isn't either."""
        self._end()
        self.parts.append(function)
        self._begin()


def unrecorded(function: Callable[[], object]) -> None:
    """Call what no CUDA graph is to hold, such as a collective; a recording under way calls it at each of its replays.

    Args:
        function: works in place, on tensors that the recording keeps where they are.
    """
    if Replay.under_way is None:
        function()
    else:
        Replay.under_way.cut(function)
