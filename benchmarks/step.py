"""A GAN step under measurement: its time and memory, and where the time goes."""

from __future__ import annotations

import gc
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from benchmarks.communication import communication_ms
from benchmarks.setting import changed
from neuropbr_dist.config import TrainConfig
from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.data.device import cut
from neuropbr_dist.data.keyed import uniforms
from neuropbr_dist.materials.relighting import Relighting, relighting
from neuropbr_dist.models import view_channels
from neuropbr_dist.monitor.throughput import peak_memory_gib
from neuropbr_dist.parallel import Network
from neuropbr_dist.parallel.strips import strip_of
from neuropbr_dist.strip import Strip
from neuropbr_dist.training.ema import WeightAverage
from neuropbr_dist.training.networks import build_networks
from neuropbr_dist.training.objective import Objective, relight_key
from neuropbr_dist.training.setup import Setup
from neuropbr_dist.training.update import Update

FAR = 10_000
"""Step, as the weights' average counts them: past its warm-up."""
WARM_UP = 2
"""Steps after the first, before those that are timed."""


@dataclass(kw_only=True)
class StepTime:
    """One row of the table; times in ms, memory in GiB."""

    first_step_s: float
    """From the networks' build to the end of the first step: compiling, mostly."""
    ms: float
    """Median wall time of a step that is waited for."""
    in_a_row_ms: float
    """Mean wall time of steps that aren't waited for one by one, as a run has them."""
    spread_ms: float
    """Largest less smallest."""
    kernels_ms: float
    """Device time of one step's kernels; 0 where not profiled."""
    nccl_ms: float = 0.0
    """Of it in collectives, waiting for other ranks included; 0 where not profiled."""
    exposed_ms: float = 0.0
    """Of that while no other kernel runs."""
    allocated_gib: float
    """Peak of the allocator's allocated bytes."""
    reserved_gib: float
    """Peak of its reserved bytes."""
    data_wait: float
    """Share in [0, 1] of the timed steps spent waiting for their samples; 0 on random tensors."""
    syncs: int
    """Host waits for the device inside one step; -1 where not profiled."""
    losses: dict[str, float]


def random_batch(
    cfg: TrainConfig, size: int, device: torch.device, seed: int = 0, strip: Strip | None = None
) -> DeviceBatch:
    """`training.batch_size` samples of noise of the right shapes and ranges; with `strip` its rows of them."""
    n = cfg.training.batch_size
    g = torch.Generator(device).manual_seed(seed)
    views = torch.randn(n, 3, view_channels(cfg.model), size, size, device=device, generator=g)
    views[:, :, 3:4] = 1  # of views on the plane: everything is seen
    maps = torch.rand(n, 8, size, size, device=device, generator=g)
    normal = F.normalize(maps[:, 5:] * 2 - 1, dim=1)
    samples = n * (dist.get_world_size() if dist.is_initialized() else 1) // cfg.training.sample_ranks
    weight = torch.full((n,), 1 / samples, device=device)
    lamps = None
    if relight_key(cfg) is not None:
        drawn = relighting([uniforms(str(sample)) for sample in range(n)])
        lamps = Relighting(*(places.to(device) for places in drawn))
    maps = torch.cat([maps[:, :5], normal], 1)
    if strip is not None:
        views, maps = (cut(pictures, strip.rows(size)) for pictures in (views, maps))
    return DeviceBatch(views, maps, weight, lamps)


class StepBench:
    """Networks of a configuration on this rank's device, and their steps on random tensors.

    Args:
        memory: memory plan, resolved.
    """

    def __init__(self, where: Setup, memory: str) -> None:
        setup, self.device = changed(where, memory=memory), where.device
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        self.began = time.perf_counter()
        self.strip = strip_of(setup.sample_ranks)
        self.networks: dict[str, Network] = build_networks(setup, strip=self.strip)
        self.objective = Objective(setup.cfg, setup.compile_losses, self.strip)
        self.batch = random_batch(setup.cfg, setup.samples.side, self.device, strip=self.strip)
        decay, d_steps = setup.cfg.training.ema_decay, setup.cfg.training.d_steps_per_g_step
        ema = WeightAverage(self.networks["generator"], decay) if decay is not None else None
        self.update = Update(self.networks, self.objective, ema, d_steps=d_steps, replayed=setup.replays)
        self.waited = 0.0
        """Seconds that steps have waited for their samples."""
        self.losses: dict[str, Tensor] = {}

    def step(self, *, gan: bool = True) -> None:
        """One step; with `gan` of the discriminator too, if there is one."""
        self.losses = self.update([self.batch], FAR, gan=gan).losses

    def settle(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def warm_up(self) -> None:
        """Steps that aren't timed."""
        for _ in range(WARM_UP):
            self.step()

    def time(self, steps: int) -> StepTime:
        """The first step, the warm-up, `steps` that are timed one by one, and as many in a row."""
        self.step()
        self.settle()
        first = time.perf_counter() - self.began
        self.warm_up()
        self.settle()
        self.waited, times = 0.0, []
        for _ in range(steps):
            began = time.perf_counter()
            self.step()
            self.settle()
            times.append(1e3 * (time.perf_counter() - began))
        losses = {name: float(value) for name, value in self.losses.items()}
        data_wait = 1e3 * self.waited / sum(times)
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.settle()
        in_a_row = 1e3 * (time.perf_counter() - began) / steps
        allocated, reserved = peak_memory_gib(self.device)
        return StepTime(
            first_step_s=first,
            ms=statistics.median(times),
            in_a_row_ms=in_a_row,
            spread_ms=max(times) - min(times),
            kernels_ms=0.0,
            allocated_gib=allocated,
            reserved_gib=reserved,
            data_wait=data_wait,
            syncs=-1,
            losses=losses,
        )

    def profile(self, row: StepTime) -> list[tuple[str, float, int]]:
        """Kernels of one step: name, ms, calls; fills `row.kernels_ms` and `row.syncs`."""
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as found:
            self.step()
            torch.cuda.synchronize()
        kernels: dict[str, list[float]] = defaultdict(list)
        waits, launched = [], 0.0
        for event in found.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                if not event.is_user_annotation:  # spans that engines mark on the device's line
                    kernels[event.name].append(event.device_time / 1e3)
            elif "Launch" in event.name:
                launched = max(launched, event.time_range.start)
            elif event.name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"):
                waits.append(event.time_range.start)
        # Those after the last launch are the one above and the profiler's own.
        row.nccl_ms, row.exposed_ms = communication_ms(found.events())
        row.kernels_ms, row.syncs = sum(map(sum, kernels.values())), sum(at < launched for at in waits)
        return sorted(((n, sum(t), len(t)) for n, t in kernels.items()), key=lambda k: -k[1])


def kernel_table(kernels: list[tuple[str, float, int]]) -> str:
    """A line a kernel: ms in one step, calls, name."""
    return "\n".join(f"  {ms:8.2f} ms {calls:4} x {name[:100]}" for name, ms, calls in kernels)
