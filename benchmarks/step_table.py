"""`launch/benchmark.py step`: a row a memory plan, on random tensors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from benchmarks.setting import need_gpu, say, setting, title
from benchmarks.step import StepBench, kernel_table
from neuropbr_dist.training.flops import matmul_flops, sample_flops
from neuropbr_dist.training.setup import Setup


def measure(args: argparse.Namespace, words: Sequence[str]) -> list[dict[str, Any]]:
    """One row a memory plan, printed as they come.

    Args:
        args: `plans`, `steps` to time, `kernels` to list.
        words: for launch/train.py.
    """
    need_gpu("step")
    with setting(words, "cuda") as where:
        say(where, title(where))
        say(
            where,
            "plan       ms a step (range)   samples/s/rank  TFLOP/s   MFU   GiB allocated  reserved  first step s",
        )
        return [row(where, plan, args) for plan in args.plans]


def row(where: Setup, plan: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one memory plan and print its line. Collective."""
    cfg, precision = where.cfg, where.precision
    flops = cfg.training.batch_size * sample_flops(cfg, where.samples.side).step(gan=cfg.model.use_gan)
    bench = StepBench(where, plan)
    found = bench.time(args.steps)
    kernels = bench.profile(found) if args.kernels else []
    samples = cfg.training.batch_size / found.ms * 1e3
    mfu = 1e3 * flops / found.ms / matmul_flops(where.device, precision)
    say(
        where,
        f"{plan:9} {found.ms:8.0f} ({found.spread_ms:5.0f})  {samples:14.3f}  {flops / found.ms / 1e9:9.0f}  {mfu:5.1%}"
        f"  {found.allocated_gib:13.1f}  {found.reserved_gib:8.1f}  {found.first_step_s:12.1f}",
    )
    if args.kernels:
        say(where, kernel_table(kernels[: args.kernels]))
    if dist.is_initialized():
        dist.barrier()
    return {
        "plan": plan, "size": where.samples.side, "engine": where.engine, "world": where.env.world_size,
        "precision": precision, "samples_per_s_rank": samples, "model_tflop": flops / 1e12, "mfu": mfu,
        "kernels": kernels, **vars(found),
    }  # fmt: skip
