"""torch.compile without its last part, which takes 3 s a graph and on a CPU says nothing of a GPU's code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo.utils import counters


@contextmanager
def no_code_generation() -> Iterator[None]:
    """Graphs are captured, guarded and differentiated, and run as they are; counted from 0."""
    original = torch.compile
    # The compiler's options are code generation's.
    torch.compile = lambda *args, options=None, **words: original(*args, **words, backend="aot_eager")
    torch._dynamo.reset()
    counters.clear()
    try:
        yield
    finally:
        torch.compile = original
        torch._dynamo.reset()
