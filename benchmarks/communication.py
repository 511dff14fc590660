"""What collectives cost inside a step: how long their kernels run, and how long nothing else does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

Interval = tuple[float, float]
"""Begin and end, in one unit of time."""


def communication_ms(events: Iterable[Any]) -> tuple[float, float]:
    """Time in which NCCL kernels run, and of it the time in which no other kernel does ("exposed").

    A rank that waits for a slower one waits inside a kernel: that counts too.

    Args:
        events: of a torch profile of CUDA activity, one process.
    """
    kernels = [
        (event.name, (event.time_range.start, event.time_range.end))
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.is_user_annotation  # FSDP2's and c10d's spans on the device's track
        and not event.name.startswith(("Memcpy", "Memset"))
    ]
    nccl = union(span for name, span in kernels if name.startswith("nccl"))
    others = union(span for name, span in kernels if not name.startswith("nccl"))
    total = length(nccl)
    return total / 1e3, (total - length(overlap(nccl, others))) / 1e3


def union(spans: Iterable[Interval]) -> list[Interval]:
    """The same points in time as disjoint intervals, in order."""
    found: list[Interval] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def overlap(a: list[Interval], b: list[Interval]) -> list[Interval]:
    """Where two lists of disjoint intervals, each in order, both are."""
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        begin, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if begin < end:
            found.append((begin, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return found


def length(spans: Iterable[Interval]) -> float:
    """Sum of the spans' lengths, in their unit; they must not overlap."""
    return sum(end - begin for begin, end in spans)
