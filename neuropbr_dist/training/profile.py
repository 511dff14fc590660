"""`--profile`: a trace of some steps of a run, and a snapshot of the GPU's memory over them."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity
from torch.utils.checkpoint import set_checkpoint_early_stop

log = logging.getLogger(__name__)


class StepProfiler:
    """Traces steps `first` to `last` of one rank into `folder`; none where `steps` is None.

    `steps_N-M.trace.json.gz` opens in Perfetto or chrome://tracing; `steps_N-M.memory.pickle`, of CUDA
    devices, in pytorch.org/memory_viz.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, device: torch.device) -> None:
        self.first, self.last = steps or (0, 0)
        self.folder, self.device = folder, device
        self.running: ExitStack | None = None
        self.began = steps is None

    def before(self, step: int) -> None:
        """Call before step `step` is taken."""
        if step != self.first:
            return
        stack = self.running = ExitStack()
        self.began = True
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            # Recomputation ends early by an exception. While one is on its way, the recorder's look at
            # Python's stack loses it ("returned NULL without setting an exception", measured).
            stack.enter_context(set_checkpoint_early_stop(False))
            torch.cuda.memory._record_memory_history(max_entries=200_000, stacks="python")
            stack.callback(torch.cuda.memory._record_memory_history, enabled=None)
        self.profile = stack.enter_context(torch.profiler.profile(activities=activities, record_shapes=True))

    def after(self, step: int) -> None:
        """Call after step `step`."""
        if step >= self.last:
            self.close(step)

    def finish(self, step: int) -> None:
        """Call after the run's last step, `step`."""
        self.close(step)
        if not self.began:
            log.info(
                f"--profile {self.first}-{self.last}: no trace, step {self.first} wasn't taken; the last was {step}"
            )

    def close(self, step: int) -> None:
        """End the trace at `step` and write it; nothing where none is running."""
        if self.running is None:
            return
        stem = self.folder / f"steps_{self.first}-{step}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.memory._dump_snapshot(f"{stem}.memory.pickle")
        self.running.close()
        self.running = None
        self.profile.export_chrome_trace(f"{stem}.trace.json.gz")
        log.info(f"Profile of steps {self.first} to {step}: {stem}.trace.json.gz")
