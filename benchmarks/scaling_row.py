"""One row of the scaling table, on every rank of its launch: `python -m` this module under torchrun."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.communication import communication_ms
from benchmarks.options import fields_of, measurement
from benchmarks.setting import setting
from benchmarks.step import StepBench, StepTime
from neuropbr_dist.cluster import detect
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.device import to_device
from neuropbr_dist.data.loader import batches_of, training_slots
from neuropbr_dist.data.open import open_source
from neuropbr_dist.data.order import SampleOrder
from neuropbr_dist.ranks import all_gather_object
from neuropbr_dist.training.facts import device_name, versions
from neuropbr_dist.training.flops import matmul_flops
from neuropbr_dist.training.setup import Setup
from neuropbr_dist.training.sharing import rows_of


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of one row."""
    p = measurement(__doc__, prog)
    p.add_argument("--plan", required=True, metavar="NAME", help="memory plan")
    p.add_argument(
        "--steps", type=int, required=True, metavar="N", help="timed; 0: fill the compile cache only"
    )
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    return p


class PackedBench(StepBench):
    """Steps on a packed set, through the loader of a run: worker processes, copies to the device."""

    def __init__(self, where: Setup, memory: str, loader: Iterator[MicroBatch]) -> None:
        super().__init__(where, memory)
        self.cfg, self.samples = where.cfg, where.cfg.training.batch_size * where.data_place[0]
        self.loader = loader

    def step(self, *, gan: bool = True) -> None:
        began = time.perf_counter()
        host = next(self.loader)
        self.waited += time.perf_counter() - began
        self.batch = to_device(host, self.samples, self.cfg.transform, self.device)
        super().step(gan=gan)

    def warm_up(self) -> None:
        """As for random tensors, then without what the workers have in stock: they have had the compiler's time for it."""
        super().warm_up()
        for _ in range(self.cfg.data.num_workers * self.cfg.data.prefetch_factor):
            next(self.loader)
        self.step()


def packed_batches(where: Setup) -> AbstractContextManager[Iterator[MicroBatch]]:
    """This rank's micro-batches of `cfg.data.packed_dir`, over and over."""
    cfg, (groups, group) = where.cfg, where.data_place
    data, batch = cfg.data, cfg.training.batch_size
    assert data.packed_dir is not None
    source = open_source(replace(data, image_size=where.samples.side), cfg.training.seed)
    order = SampleOrder(len(source.entries), batch * groups, epochs=10_000, seed=cfg.training.seed)
    slots = training_slots(order, 0, groups, group, batch)
    alignment = Alignment.of_run(cfg, training=True)
    rows = rows_of(where.env, where.sample_ranks, where.samples.side)
    return batches_of(data, source, source.entries, slots, where.device, alignment=alignment, rows=rows)


def measure(where: Setup, plan: str, steps: int) -> dict[str, Any]:
    """Collective. Times in ms, memory in GiB; lists are by rank."""
    cfg = where.cfg
    if cfg.data.packed_dir is None:
        found, (nccl, exposed) = timed(StepBench(where, plan), steps)
    else:
        with packed_batches(where) as batches:
            found, (nccl, exposed) = timed(PackedBench(where, plan, batches), steps)
    peak = matmul_flops(where.device, where.need.dtype) / 1e12
    return {
        "ms": found.ms, "spread_ms": found.spread_ms, "first_step_s": found.first_step_s, "losses": found.losses,
        "samples_per_s_rank": cfg.training.batch_size / where.sample_ranks / found.ms * 1e3, "data_wait": all_gather_object(found.data_wait),
        "allocated_gib": all_gather_object(found.allocated_gib), "reserved_gib": all_gather_object(found.reserved_gib),
        "nccl_ms": all_gather_object(nccl), "exposed_ms": all_gather_object(exposed), "matmul_tflops": all_gather_object(peak),
    }  # fmt: skip


def timed(bench: StepBench, steps: int) -> tuple[StepTime, tuple[float, float]]:
    """`steps` under the clock, then a look at their NCCL kernels."""
    return bench.time(steps), profile(bench)


def profile(bench: StepBench) -> tuple[float, float]:
    """NCCL kernels of one step, ms: in all, and exposed."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    for _ in range(2):  # the first starts the profiler, in the midst of the step
        with torch.profiler.profile(activities=activities) as found:
            bench.step()
            torch.cuda.synchronize()
    return communication_ms(found.events())


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Measure this rank's part of a row; rank 0 writes it."""
    args = parser(prog).parse_args(argv)
    began = time.perf_counter()
    cfg, env = fields_of(args, {}).configuration(), detect()
    if not args.steps:  # this rank on its own
        with setting(cfg, "scaling", replace(env, launcher="none", rank=0, world_size=1)) as where:
            StepBench(where, args.plan).step()
            torch.cuda.synchronize()
        return
    with setting(cfg, "scaling", env) as where:
        row = {
            "engine": where.engine, "shard": cfg.training.shard, "world": env.world_size,
            "sample_ranks": where.sample_ranks, "plan": args.plan, "size": where.samples.side, "device": device_name(where.device), "versions": versions(),
            **measure(where, args.plan, args.steps), "launch_s": time.perf_counter() - began,
        }  # fmt: skip
        if env.rank == 0:
            args.out.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    run()
