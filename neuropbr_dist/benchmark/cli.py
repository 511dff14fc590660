"""`launch/benchmark.py`: what to measure, and where the figures go."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from neuropbr_dist.benchmark import attention, checkpoint, loader, scaling
from neuropbr_dist.benchmark.step import StepBench, StepTime, kernel_table
from neuropbr_dist.cluster import Environment, detect, pick_device, process_group
from neuropbr_dist.config import TrainConfig
from neuropbr_dist.config.cli import config_from, train_parser
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.engines import engine_of, precision_of
from neuropbr_dist.training.flops import sample_flops
from neuropbr_dist.training.memory import PLANS
from neuropbr_dist.training.start import device_name, versions

WARM_UP = 2
NATIVE_SIZE = 2048  # px, where the configuration names none


def parser() -> argparse.ArgumentParser:
    """The words of `launch/benchmark.py`, a subcommand a measurement."""
    p = argparse.ArgumentParser(
        description="Measure step, scaling, attention, loader or checkpoint.", allow_abbrev=False
    )
    what = p.add_subparsers(dest="what", required=True)
    step = what.add_parser(
        "step",
        help="time and memory of GAN steps on random tensors; under torchrun or deepspeed, samples/s a rank",
        description="Other words are those of launch/train.py (--config, --engine, --ds, --set, ...).",
        allow_abbrev=False,
    )
    step.add_argument(
        "--plans", nargs="+", choices=PLANS, default=list(PLANS), help="memory plans; default all"
    )
    step.add_argument("--steps", type=int, default=8, metavar="N", help="timed steps; default %(default)s")
    step.add_argument(
        "--kernels", type=int, default=0, metavar="N", help="list the N longest kernels of a step"
    )
    weak = what.add_parser(
        "scaling",
        help="samples/s a GPU on 1, 2, 4, ... GPUs of this machine; starts the ranks itself",
        description="Other words are those of launch/train.py, the same for all rows (--config, --set, ...).",
        allow_abbrev=False,
    )
    scaling.add_arguments(weak)
    heads = what.add_parser("attention", help="backends of scaled-dot-product attention at the model's shape")
    heads.add_argument("--tokens", type=int, default=49152, metavar="N", help="default %(default)s")
    loading = what.add_parser("loader", help="samples/s from PNG and packed sets")
    loader.add_arguments(loading)
    for command in (step, heads, loading):
        command.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    what.add_parser("checkpoint", help="stall of a save, bytes, phases of a restart", add_help=False)
    return p


def benchmark(argv: Sequence[str] | None = None) -> None:
    """Raises UserError for words that nobody knows and for figures that need a GPU without one."""
    args, words = parser().parse_known_args(argv)
    if args.what == "checkpoint":
        checkpoint.main(words)
        return
    if args.what == "scaling":
        scaling.measure(args, words)
        return
    if args.what == "step":
        found: dict[str, Any] = {"rows": steps(args, words)}
    elif words:
        raise UserError(f"launch/benchmark.py {args.what}: unknown words {' '.join(words)}")
    elif args.what == "attention":
        found = {"rows": attention.measure(args.tokens, need_gpu("attention"))}
    else:
        found = loader.run(args)
    if args.out and os.environ.get("RANK", "0") == "0":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        facts = {"versions": versions(), "device": device_name(device)}
        args.out.write_text(json.dumps({**facts, **found}, indent=1) + "\n")


def need_gpu(what: str) -> torch.device:
    """The current CUDA device.

    Raises:
        UserError: there is none.
    """
    if not torch.cuda.is_available():
        raise UserError(f"launch/benchmark.py {what} needs a CUDA device; there is none")
    return torch.device("cuda", torch.cuda.current_device())


def steps(args: argparse.Namespace, words: Sequence[str]) -> list[dict[str, Any]]:
    """One row a memory plan, printed as they come."""
    need_gpu("step")
    cfg: TrainConfig = config_from(train_parser().parse_args(words))
    env = detect()
    device = pick_device("cuda", env)
    needs_group = env.distributed or engine_of(cfg, env) != "single"
    group = process_group(env, device, cfg.training.timeout_minutes) if needs_group else nullcontext()
    rows, size = [], cfg.data.image_size or NATIVE_SIZE
    flops = cfg.training.batch_size * sample_flops(cfg, size).step(gan=cfg.model.use_gan)
    with group:
        if env.rank == 0:
            print(
                f"{engine_of(cfg, env)} on {env.world_size} x {device_name(device)}, torch {torch.__version__}"
            )
            print(
                "plan       ms a step (range)   samples/s/rank  TFLOP/s   MFU   GiB allocated  reserved  first step s"
            )
        for plan in args.plans:
            rows.append(row(cfg, env, device, size, flops, plan, args))
    return rows


def row(
    cfg: TrainConfig,
    env: Environment,
    device: torch.device,
    size: int,
    flops: float,
    plan: str,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Measure one memory plan and print its line.

    Args:
        size: side of the pictures in pixels.
        flops: of one step of one rank.
    """
    bench = StepBench(cfg, env, device, size, plan)
    found: StepTime = bench.time(WARM_UP, args.steps)
    kernels = bench.profile(found) if args.kernels else []
    rate = flops / found.ms / 1e9
    samples = cfg.training.batch_size / found.ms * 1e3
    peak = bench.peak_tflops()
    if env.rank == 0:
        print(
            f"{plan:9} {found.ms:8.0f} ({found.spread_ms:5.0f})  {samples:14.3f}  {rate:9.0f}  {rate / peak:5.1%}"
            f"  {found.allocated_gib:13.1f}  {found.reserved_gib:8.1f}  {found.first_step_s:12.1f}",
            flush=True,
        )
        print(kernel_table(kernels[: args.kernels]), end="")
    if dist.is_initialized():
        dist.barrier()
    return {
        "plan": plan, "size": size, "engine": engine_of(cfg, env), "world": env.world_size,
        "precision": precision_of(cfg, device), "samples_per_s_rank": samples, "model_tflop": flops / 1e12,
        "mfu": rate / peak, "kernels": kernels, **vars(found),
    }  # fmt: skip
