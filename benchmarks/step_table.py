"""`launch/benchmark.py step`: a row a memory plan, on random tensors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.options import STEP, fields_of, measurement, plans_of
from benchmarks.setting import say, setting, title, write_figures
from benchmarks.step import StepBench, kernel_table
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.training.flops import matmul_flops, sample_flops
from neuropbr_dist.training.memory import PLANS
from neuropbr_dist.training.setup import Setup


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py step`."""
    p = measurement(__doc__, prog)
    add_plans(p)
    p.add_argument("--kernels", type=int, default=0, metavar="N", help="list the N longest kernels of a step")
    return p


def add_plans(p: argparse.ArgumentParser) -> None:
    """Add what a table with a row a memory plan has."""
    p.add_argument("--plans", nargs="+", choices=PLANS, help="memory plans; default: training.memory, or all")
    p.add_argument("--steps", type=int, default=8, metavar="N", help="timed; default %(default)s")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print one row a memory plan as they come; under torchrun or deepspeed, samples/s a rank."""
    args = parser(prog).parse_args(argv)
    cfg = fields_of(args, STEP).configuration()
    plans = plans_of(cfg, args.plans, PLANS)
    with setting(cfg, "step") as where:
        say(where, title(where))
        say(
            where,
            "plan       ms a step (range)   in a row   samples/s/rank  TFLOP/s   MFU   GiB allocated  reserved  first step s",
        )
        rows = [row(where, plan, args) for plan in plans]
    write_figures(args.out, {"rows": rows})


def row(where: Setup, plan: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one memory plan and print its line. Collective."""
    cfg, precision = where.cfg, where.precision
    each = cfg.training.batch_size / where.sample_ranks  # samples a rank
    flops = each * sample_flops(cfg, where.samples.side).step(
        gan=cfg.model.use_gan, d_steps=cfg.training.d_steps_per_g_step
    )
    bench = StepBench(where, plan)
    found = bench.time(args.steps)
    kernels = bench.profile(found) if args.kernels else []
    samples = each / found.ms * 1e3
    mfu = 1e3 * flops / found.ms / matmul_flops(where.device, where.need.dtype)
    say(
        where,
        f"{plan:9} {found.ms:8.0f} ({found.spread_ms:5.0f})  {found.in_a_row_ms:9.1f}  {samples:14.3f}  {flops / found.ms / 1e9:9.0f}  {mfu:5.1%}"
        f"  {found.allocated_gib:13.1f}  {found.reserved_gib:8.1f}  {found.first_step_s:12.1f}",
    )
    if args.kernels:
        say(
            where,
            f"  kernels {found.kernels_ms:.1f} ms a step; NCCL {found.nccl_ms:.1f}, {found.exposed_ms:.1f} of it beside no other",
        )
        say(where, kernel_table(kernels[: args.kernels]))
    if dist.is_initialized():
        dist.barrier()
    return {
        "plan": plan, "size": where.samples.side, "engine": where.engine, "world": where.env.world_size,
        "sample_ranks": where.sample_ranks, "precision": precision, "samples_per_s_rank": samples, "model_tflop": flops / 1e12, "mfu": mfu,
        "kernels": kernels, **vars(found),
    }  # fmt: skip
