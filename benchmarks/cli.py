"""`launch/benchmark.py`: what to measure, and where the figures go."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import attention, checkpoint, compiling, loader, memory, scaling, step_table
from benchmarks.setting import need_gpu
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.facts import device_name, versions
from neuropbr_dist.training.memory import PLANS

WORDS_OF_TRAIN = "Other words are those of launch/train.py (--config, --engine, --ds, --set, ...)."


def parser() -> argparse.ArgumentParser:
    """The words of `launch/benchmark.py`, a subcommand a measurement."""
    p = argparse.ArgumentParser(
        description="Measure step, memory, compile, scaling, attention, loader or checkpoint.",
        allow_abbrev=False,
    )
    what = p.add_subparsers(dest="what", required=True)
    with_trains = partial(what.add_parser, description=WORDS_OF_TRAIN, allow_abbrev=False)
    step = with_trains(
        "step",
        help="time and memory of GAN steps on random tensors; under torchrun or deepspeed, samples/s a rank",
    )
    step.add_argument(
        "--kernels", type=int, default=0, metavar="N", help="list the N longest kernels of a step"
    )
    room = with_trains(
        "memory", help="peak memory of each memory plan beside its estimate; what fits a smaller card"
    )
    memory.add_arguments(room)
    for command in (step, room):
        command.add_argument(
            "--plans", nargs="+", choices=PLANS, default=list(PLANS), help="memory plans; default all"
        )
        command.add_argument("--steps", type=int, default=8, metavar="N", help="timed; default %(default)s")
    waiting = with_trains(
        "compile",
        help="the first step with an empty and a filled compile cache; graphs, breaks, recompilations",
    )
    compiling.add_arguments(waiting)
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
    for command in (step, room, waiting, heads, loading):
        command.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    what.add_parser("checkpoint", help="stall of a save, bytes, phases of a restart", add_help=False)
    return p


def refuse_data(what: str, words: Sequence[str]) -> None:
    """Raises UserError for a set that nothing would be read from."""
    for word in words:
        if (name := word.partition("=")[0]) in ("--data", "--input-dir", "--output-dir"):
            raise UserError(
                f"{name}: launch/benchmark.py {what} takes random tensors; on a packed set: "
                "launch/benchmark.py scaling --worlds 1 --engines single --data DIR"
            )


def benchmark(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Raises UserError for words that nobody knows and for figures that need a GPU without one."""
    args, words = parser().parse_known_args(argv)
    if args.what in ("step", "memory", "compile"):
        refuse_data(args.what, words)
    if args.what == "checkpoint":
        checkpoint.main(words)
        return
    if args.what == "scaling":
        scaling.measure(args, words)
        return
    if args.what == "step":
        found: dict[str, Any] = {"rows": step_table.measure(args, words)}
    elif args.what == "memory":
        found = memory.measure(args, words)
    elif args.what == "compile":
        found = compiling.measure(args, words)
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


run = entry(benchmark)
