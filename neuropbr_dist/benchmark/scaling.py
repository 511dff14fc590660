"""Weak scaling: the same work a GPU on more and more GPUs of this machine, one launch a row."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from neuropbr_dist.benchmark.ranks import ROOT, Launch, run_all
from neuropbr_dist.errors import UserError

ENGINES = {
    "fsdp": ["--engine", "fsdp"],
    "hsdp": ["--engine", "fsdp", "--shard", "node"],
    "zero1": ["--ds", str(ROOT / "ds_configs" / "zero1.json")],
    "zero2": ["--ds", str(ROOT / "ds_configs" / "zero2.json")],
    "zero3": ["--ds", str(ROOT / "ds_configs" / "zero3.json")],
    "ddp": ["--engine", "ddp"],
}
ROW = "neuropbr_dist.benchmark.scaling_row"
NODES_OF_HSDP = 2
"""This machine's ranks stand as two nodes: sharded inside, replicated across."""


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The words of `launch/benchmark.py scaling`."""
    p.add_argument("--worlds", nargs="+", type=int, default=[1, 2, 4], metavar="N", help="default 1 2 4")
    p.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=["fsdp", "zero2"], metavar="NAME",
        help=f"{', '.join(ENGINES)}; default fsdp zero2. hsdp is left out below 4 ranks",
    )  # fmt: skip
    p.add_argument("--plan", default="balanced", metavar="NAME", help="memory plan; default balanced")
    p.add_argument("--size", type=int, default=2048, metavar="PX", help="default 2048")
    p.add_argument("--steps", type=int, default=8, metavar="N", help="timed steps; default 8")
    p.add_argument("--data", metavar="DIR", help="a second set of rows, on this packed set")
    p.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="of one launch; default 300")
    p.add_argument(
        "--fill-cache", action="store_true",
        help="measure nothing: compile for every GPU and engine at once, so that no row waits for it",
    )  # fmt: skip
    p.add_argument("--folder", type=Path, default=Path("scaling"), metavar="DIR",
                   help="tables, rows and logs go here; default ./scaling")  # fmt: skip


def measure(args: argparse.Namespace, words: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as they come, in `scaling.json` and `scaling.md` of the folder after each; a failed row holds its error.

    Rows that need fewer GPUs than there are run beside others, on GPUs of their own.

    Args:
        words: for launch/train.py, the same for all rows (--config, --set, ...).

    Raises:
        UserError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise UserError("launch/benchmark.py scaling needs a CUDA device; there is none")
    gpus = range(torch.cuda.device_count())
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.fill_cache:
        fill = cache_launches(args, words, len(gpus))
        run_all(fill, [*gpus] * len(fill), args.folder, say, args.limit)
        return []
    rows: list[dict[str, Any]] = []

    def note(launch: Launch, fault: str) -> None:
        engine, world, data = launch.name.split("-")
        file = args.folder / f"{launch.name}.json"
        row = {"error": fault} if fault else json.loads(file.read_text())
        rows.append({"name": engine, "world": int(world), "data": data, **row})
        (args.folder / "scaling.json").write_text(json.dumps(rows, indent=1) + "\n")
        (args.folder / "scaling.md").write_text(as_table(rows) + "\n")
        say(launch, fault or f"{row['ms']:.0f} ms a step, in {row['launch_s']:.0f} s")

    run_all(launches(args, words), gpus, args.folder, note, args.limit)
    print(as_table(rows))
    return rows


def say(launch: Launch, what: str) -> None:
    """Print a launch's outcome."""
    print(f"{launch.name}: {what or 'done'}", flush=True)


def launches(args: argparse.Namespace, words: Sequence[str]) -> list[Launch]:
    """Random tensors first; of each, the fewest GPUs first."""
    found = []
    for data in ("random", "packed") if args.data else ("random",):
        for world in args.worlds:
            for engine in args.engines:
                if engine == "hsdp" and world < 2 * NODES_OF_HSDP:
                    continue
                name = f"{engine}-{world}-{data}"
                more = ["--data", args.data] if data == "packed" else []
                nodes = NODES_OF_HSDP if engine == "hsdp" else 1
                out = args.folder / f"{name}.json"
                found.append(
                    Launch(
                        name=name,
                        words=row_words(args, engine, args.plan, args.steps, out, [*more, *words]),
                        ranks=world,
                        nodes=nodes,
                    )
                )
    return found


def cache_launches(args: argparse.Namespace, words: Sequence[str], gpus: int) -> list[Launch]:
    """Every rank on its own, as what is compiled for one GPU isn't found again for the next.

    The engines share the GPUs, so they take the plan that needs least memory: its graphs are mostly
    those of the other plans.
    """
    return [
        Launch(
            name=f"cache-{engine}",
            ranks=gpus,
            words=row_words(args, engine, "low", 0, args.folder / "none", words),
        )
        for engine in args.engines
        if engine != "hsdp"  # FSDP's
    ]


def row_words(
    args: argparse.Namespace, engine: str, plan: str, steps: int, out: Path, words: Sequence[str]
) -> list[str]:
    """The command line of one row's ranks, after the interpreter."""
    own = ["--size", str(args.size), "--plan", plan, "--steps", str(steps), "--out", str(out)]
    return ["-m", ROW, *own, *ENGINES[engine], "--set", "model.encoder_pretrained=false", *words]


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; engines together, fewest GPUs first."""
    lines = [
        "| engine | data | GPUs | ms a step (range) | samples/s a GPU | of one GPU's | GiB allocated a rank | reserved "
        "| NCCL ms a step | exposed | matmul TFLOP/s a rank | first step s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    alone = {(r["name"], r["data"]): r["samples_per_s_rank"] for r in rows if r["world"] == 1 and "ms" in r}
    if ("fsdp", "random") in alone:  # HSDP has no row of one GPU
        alone.setdefault(("hsdp", "random"), alone["fsdp", "random"])
    for r in sorted(rows, key=lambda r: (r["data"] != "random", r["name"], r["world"])):
        head = f"| {r['name']} | {r['data']} | {r['world']} |"
        if "error" in r:
            lines.append(f"{head} {r['error'].replace('|', '/')} |" + " |" * 8)
            continue
        one = alone.get((r["name"], r["data"]))
        share = f"{r['samples_per_s_rank'] / one:.1%}" if one else "–"
        lines.append(
            f"{head} {r['ms']:.1f} ({r['spread_ms']:.1f}) | {r['samples_per_s_rank']:.4f} | {share} "
            f"| {between(r['allocated_gib'], 1)} | {between(r['reserved_gib'], 1)} | {between(r['nccl_ms'], 1)} "
            f"| {between(r['exposed_ms'], 1)} | {between(r['matmul_tflops'], 0)} | {r['first_step_s']:.1f} |"
        )
    return "\n".join(lines)


def between(values: Sequence[float], digits: int) -> str:
    """The ranks' values: one if they print alike, else from the least to the greatest."""
    least, most = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return least if least == most else f"{least}–{most}"
