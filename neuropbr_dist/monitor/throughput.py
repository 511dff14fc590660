"""Throughput of a run: samples a second, time a step, waiting for data, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Throughput:
    """Figures that `Meter.read` found over one interval."""

    ms_per_step: float
    """Wall time a step."""
    samples_per_s: float
    """Samples (of the global batch) a second."""
    data_wait: float
    """Share in [0, 1] of the interval that the host spent waiting for data. On a GPU, where the host
    runs ahead, an upper bound on the time the device stood idle for it."""
    memory_gib: float
    """Peak device memory in tensors, GiB; on CPU the process's peak resident memory."""
    reserved_gib: float
    """Peak device memory held by the allocator, GiB; on CPU the same as `memory_gib`."""
    mfu: float | None = None
    """Model FLOPs utilisation of this rank in [0, 1]: arithmetic that the model asks for (recomputation not
    counted) over what the device could do in that time. None where the device's ceiling isn't known."""

    def scalars(self) -> dict[str, float]:
        """Name to value for the run's log; what isn't known is left out."""
        return {f"speed/{name}": value for name, value in vars(self).items() if value is not None}


class Meter:
    """Measures intervals of steps with the host's clock; never waits for the device.

    A GPU's steps are queued: the host's time for one step says nothing. Over an
    interval it is right, if each `read` comes just after the host has read
    something from the device, as a log step does. So the figures are means over the
    interval between two reads.

        meter = Meter(device)
        while ...:
            with meter.waiting():
                batch = next(batches)
            ...
            meter.step(samples)
            if log_step: losses = read(...); throughput = meter.read()
            if validated_or_saved: meter.restart()

    Args:
        peak_flops: the device's ceiling in FLOP/s, for `mfu`; None: not known.
    """

    def __init__(self, device: torch.device | str, peak_flops: float | None = None):
        self.device, self.peak_flops = torch.device(device), peak_flops
        self.restart()

    def restart(self) -> None:
        """Begin a new interval, forgetting the current one (after validation or a save)."""
        self._began = time.perf_counter()
        self._waited = 0.0
        self._steps = self._samples = 0
        self._flops = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def step(self, samples: int, flops: float = 0.0) -> None:
        """Note that one step over `samples` samples of the global batch is done; this rank's part asked for `flops`."""
        self._steps += 1
        self._samples += samples
        self._flops += flops

    def read(self) -> Throughput:
        """Return the interval since the last `read` or `restart`; begins a new one. NaN a step if it held none."""
        seconds = time.perf_counter() - self._began
        memory, reserved = peak_memory_gib(self.device)
        throughput = Throughput(
            ms_per_step=1000 * seconds / self._steps if self._steps else float("nan"),
            samples_per_s=self._samples / seconds,
            data_wait=self._waited / seconds,
            memory_gib=memory,
            reserved_gib=reserved,
            mfu=self._flops / seconds / self.peak_flops if self.peak_flops else None,
        )
        self.restart()
        return throughput


def peak_memory_gib(device: torch.device) -> tuple[float, float]:
    """Return peak memory in GiB so far: (in tensors, held by the allocator); off CUDA the process's resident peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30, torch.cuda.max_memory_reserved(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return peak, peak
