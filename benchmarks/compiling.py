"""`launch/benchmark.py compile`: the wait for the compiler, with an empty cache and with one that another process filled."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.options import STEP, fields_of, measurement
from benchmarks.ranks import run_alone
from benchmarks.setting import write_figures
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.errors import UserError

ROW = "benchmarks.compiling_row"
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Variables that say where compiled code is kept -> our folders."""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py compile`."""
    p = measurement(__doc__, prog)
    p.add_argument(
        "--steps", type=int, default=3, metavar="N", help="of each phase, 2 or more; default %(default)s"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print the same steps of two processes, one after the other, that share a cache of their own."""
    args = parser(prog).parse_args(argv)
    if args.steps < 2:
        raise UserError(f"--steps {args.steps}: a phase needs a first step and a later one, 2 or more")
    fields = fields_of(args, STEP)
    with TemporaryDirectory() as scratch:
        caches = {name: str(Path(scratch, folder)) for name, folder in CACHES.items()}
        runs = {}
        for cache in ("empty", "filled"):
            out = Path(scratch, f"{cache}.json")
            run_alone(["-m", ROW, "--out", str(out), "--steps", str(args.steps), *fields.argv()], **caches)
            runs[cache] = json.loads(out.read_text())
    print(as_table(runs))
    write_figures(args.out, {"runs": runs})


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
