"""`launch/benchmark.py compile`: the wait for the compiler, with an empty cache and with one that another process filled."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.ranks import run_alone
from neuropbr_dist.commands.train import config_of
from neuropbr_dist.errors import UserError

ROW = "benchmarks.compiling_row"
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Variables that say where compiled code is kept -> our folders."""


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The words of `launch/benchmark.py compile`."""
    p.add_argument(
        "--steps", type=int, default=3, metavar="N", help="of each phase, 2 or more; default %(default)s"
    )


def measure(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """The same steps in two processes, one after the other, that share a cache of their own; prints a table.

    Args:
        words: for launch/train.py.

    Raises:
        UserError: fewer than 2 steps, words that training would refuse, or a process that failed; with its last lines.
    """
    if args.steps < 2:
        raise UserError(f"--steps {args.steps}: a phase needs a first step and a later one, 2 or more")
    config_of(words)  # wrong words are one line here, a traceback there
    with TemporaryDirectory() as scratch:
        caches = {name: str(Path(scratch, folder)) for name, folder in CACHES.items()}
        runs = {}
        for cache in ("empty", "filled"):
            out = Path(scratch, f"{cache}.json")
            run_alone(["-m", ROW, "--out", str(out), "--steps", str(args.steps), *words], **caches)
            runs[cache] = json.loads(out.read_text())
    print(as_table(runs))
    return {"runs": runs}


def as_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, for a dated file in benchmarks/.

    Args:
        runs: by the state of the cache, as `compiling_row.measure` gives them.
    """
    lines = [
        "| cache | phase | first step s | later ms | graphs | recompilations | graph breaks | found in cache |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cache, run in runs.items():
        for p in run["phases"]:
            lines.append(
                f"| {cache} | {p['phase']} | {p['first_s']:.1f} | {p['later_ms']:.0f} | {p['graphs']} "
                f"| {p['recompilations']} | {p['graph_breaks']} | {p['found']} of {p['found'] + p['made']} |"
            )
    head = next(iter(runs.values()))
    waits = [
        f"{cache}: {run['first_step_s']:.1f} s from the networks' build to the first step's end, "
        f"{run['settled_s']:.1f} s until every phase has begun"
        for cache, run in runs.items()
    ]
    return "\n".join([head["setting"], "", *lines, "", *waits])
