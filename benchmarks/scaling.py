"""Weak scaling: the same work a GPU on more and more GPUs of this machine, one launch a row; on real data too."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import ENGINE, STEP, add_size, fields_of, measurement, plans_of
from benchmarks.ranks import Launch, run_all
from benchmarks.setting import need_gpu
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.data.sources import BUILTIN_SIZE
from neuropbr_dist.training.memory import PLANS

ENGINES = {
    "single": ["--engine", "single"],
    "fsdp": ["--engine", "fsdp"],
    "hsdp": ["--engine", "fsdp", "--shard", "node"],
    "zero1": ["--ds", "zero1"],
    "zero2": ["--ds", "zero2"],
    "zero3": ["--ds", "zero3"],
    "ddp": ["--engine", "ddp"],
}
ROW = "benchmarks.scaling_row"
NODES_OF_HSDP = 2
"""This machine's ranks stand as two nodes: sharded inside, replicated across."""


SET_HERE = ENGINE | {
    "training.global_batch_size": STEP["training.global_batch_size"],
    "data.input_dir": "a packed set (--data) or random tensors are measured",
    "data.output_dir": "a packed set (--data) or random tensors are measured",
}


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py scaling`; with `--data`, each row has one on that set beside it."""
    p = measurement(__doc__, prog)
    p.add_argument("--worlds", nargs="+", type=int, default=[1, 2, 4], metavar="N", help="default 1 2 4")
    p.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=["fsdp", "zero2"], metavar="NAME",
        help=f"{', '.join(ENGINES)}; default fsdp zero2. single is for one rank, hsdp for 4 or more",
    )  # fmt: skip
    p.add_argument("--plan", choices=PLANS, help="memory plan; default: training.memory, or balanced")
    add_size(p, BUILTIN_SIZE)
    p.add_argument("--steps", type=int, default=8, metavar="N", help="timed steps; default 8")
    p.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="of one launch; default 300")
    p.add_argument(
        "--fill-cache", action="store_true",
        help="measure nothing: compile for every GPU and engine at once, so that no row waits for it",
    )  # fmt: skip
    p.add_argument("--folder", type=Path, default=Path("scaling"), metavar="DIR",
                   help="tables, rows and logs go here; default ./scaling")  # fmt: skip
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Write rows as they come, to `scaling.json` and `scaling.md` of the folder; a failed row holds its error.

    Rows that need fewer GPUs than there are run beside others, on GPUs of their own.
    """
    args = parser(prog).parse_args(argv)
    fields = fields_of(args, SET_HERE, BUILTIN_SIZE)
    cfg = fields.configuration()
    (plan,) = plans_of(cfg, args.plan and [args.plan], ["balanced"])
    need_gpu("scaling")
    gpus = range(torch.cuda.device_count())
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.fill_cache:
        fill = cache_launches(args, fields, len(gpus))
        run_all(fill, [*gpus] * len(fill), args.folder, say, args.limit)
        return
    rows: list[dict[str, Any]] = []

    def note(launch: Launch, fault: str) -> None:
        engine, world, data = launch.name.split("-")
        file = args.folder / f"{launch.name}.json"
        row = {"error": fault} if fault else json.loads(file.read_text())
        rows.append({"name": engine, "world": int(world), "data": data, **row})
        compare(rows)
        (args.folder / "scaling.json").write_text(json.dumps(rows, indent=1) + "\n")
        (args.folder / "scaling.md").write_text(as_table(rows) + "\n")
        say(launch, fault or f"{row['ms']:.0f} ms a step, in {row['launch_s']:.0f} s")

    run_all(launches(args, fields, plan), gpus, args.folder, note, args.limit)
    print(as_table(rows))


def say(launch: Launch, what: str) -> None:
    """Print a launch's outcome."""
    print(f"{launch.name}: {what or 'done'}", flush=True)


def launches(args: argparse.Namespace, fields: Overrides, plan: str) -> list[Launch]:
    """Return the rows' launches: random tensors first; of each, the fewest GPUs first."""
    sets = {"random": fields.with_field("data.packed_dir", None)}
    sharing = fields.configuration().training.sample_ranks
    if fields.configuration().data.packed_dir is not None:
        sets["packed"] = fields
    return [
        Launch(
            name=f"{engine}-{world}-{data}",
            argv=row_argv(engine, plan, args.steps, args.folder / f"{engine}-{world}-{data}.json", of_row),
            ranks=world,
            nodes=NODES_OF_HSDP if engine == "hsdp" else 1,
        )
        for data, of_row in sets.items()
        for world in args.worlds
        for engine in args.engines
        if runs_on(engine, world) and world % sharing == 0
    ]


def runs_on(engine: str, world: int) -> bool:
    """Whether an engine is anything of its own on `world` ranks."""
    return {"single": world == 1, "hsdp": world >= 2 * NODES_OF_HSDP}.get(engine, True)


def cache_launches(args: argparse.Namespace, fields: Overrides, gpus: int) -> list[Launch]:
    """Return launches of every rank on its own, as what is compiled for one GPU isn't found again for the next.

    The engines share the GPUs, so they take the plan that needs least memory: its graphs are mostly
    those of the other plans.
    """
    return [
        Launch(
            name=f"cache-{engine}",
            ranks=gpus,
            argv=row_argv(engine, "low", 0, args.folder / "none", fields.with_field("data.packed_dir", None)),
        )
        for engine in args.engines
        if engine != "hsdp"  # FSDP's
    ]


def row_argv(engine: str, plan: str, steps: int, out: Path, fields: Overrides) -> list[str]:
    """Return the command line of one row's ranks, after the interpreter."""
    own = ["--plan", plan, "--steps", str(steps), "--out", str(out)]
    return ["-m", ROW, *own, *ENGINES[engine], "--set", "model.encoder_pretrained=false", *fields.argv()]


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Into each row on real data, `of_random`: its samples/s over those of the same ranks on random tensors."""
    random = {
        (r["name"], r["world"]): r["samples_per_s_rank"] for r in measured(rows) if r["data"] == "random"
    }
    for row in measured(rows):
        if row["data"] != "random" and (row["name"], row["world"]) in random:
            row["of_random"] = row["samples_per_s_rank"] / random[row["name"], row["world"]]


def measured(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that haven't failed."""
    return [row for row in rows if "error" not in row]


COLUMNS = (
    "engine", "data", "GPUs", "ms a step (range)", "samples/s a GPU", "of one GPU's", "of random tensors'",
    "data wait", "GiB allocated a rank", "reserved", "NCCL ms a step", "exposed", "matmul TFLOP/s a rank",
    "first step s",
)  # fmt: skip


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; engines together, fewest GPUs first."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    alone = {(r["name"], r["data"]): r["samples_per_s_rank"] for r in measured(rows) if r["world"] == 1}
    if ("fsdp", "random") in alone:  # HSDP has no row of one GPU
        alone.setdefault(("hsdp", "random"), alone["fsdp", "random"])
    for r in sorted(rows, key=lambda r: (r["data"] != "random", r["name"], r["world"])):
        head = [r["name"], r["data"], str(r["world"])]
        cells = [r["error"].replace("|", "/")] if "error" in r else figures(r, alone)
        empty = [""] * (len(COLUMNS) - len(head) - len(cells))
        lines.append(f"| {' | '.join([*head, *cells, *empty])} |")
    return "\n".join(lines)


def figures(r: dict[str, Any], alone: dict[tuple[str, str], float]) -> list[str]:
    """A row's cells after its name.

    Args:
        alone: samples/s on one GPU, by engine and data.
    """
    one, real = alone.get((r["name"], r["data"])), r["data"] != "random"
    return [
        f"{r['ms']:.1f} ({r['spread_ms']:.1f})",
        f"{r['samples_per_s_rank']:.4f}",
        f"{r['samples_per_s_rank'] / one:.1%}" if one else "–",
        f"{r['of_random']:.1%}" if "of_random" in r else "–",
        f"{between([100 * share for share in r['data_wait']], 1)} %" if real else "–",
        between(r["allocated_gib"], 1),
        between(r["reserved_gib"], 1),
        between(r["nccl_ms"], 1),
        between(r["exposed_ms"], 1),
        between(r["matmul_tflops"], 0),
        f"{r['first_step_s']:.1f}",
    ]


def between(values: Sequence[float], digits: int) -> str:
    """The ranks' values: one if they print alike, else from the least to the greatest."""
    least, most = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return least if least == most else f"{least}–{most}"
