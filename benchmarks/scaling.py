"""Weak scaling: the same work a GPU on more and more GPUs of this machine, one launch a row; on real data too."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.ranks import ROOT, Launch, run_all
from neuropbr_dist.errors import UserError

ENGINES = {
    "single": ["--engine", "single"],
    "fsdp": ["--engine", "fsdp"],
    "hsdp": ["--engine", "fsdp", "--shard", "node"],
    "zero1": ["--ds", str(ROOT / "ds_configs" / "zero1.json")],
    "zero2": ["--ds", str(ROOT / "ds_configs" / "zero2.json")],
    "zero3": ["--ds", str(ROOT / "ds_configs" / "zero3.json")],
    "ddp": ["--engine", "ddp"],
}
ROW = "benchmarks.scaling_row"
NODES_OF_HSDP = 2
"""This machine's ranks stand as two nodes: sharded inside, replicated across."""


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The words of `launch/benchmark.py scaling`."""
    p.add_argument("--worlds", nargs="+", type=int, default=[1, 2, 4], metavar="N", help="default 1 2 4")
    p.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=["fsdp", "zero2"], metavar="NAME",
        help=f"{', '.join(ENGINES)}; default fsdp zero2. single is for one rank, hsdp for 4 or more",
    )  # fmt: skip
    p.add_argument("--plan", default="balanced", metavar="NAME", help="memory plan; default balanced")
    p.add_argument("--size", type=int, default=2048, metavar="PX", help="default 2048")
    p.add_argument("--steps", type=int, default=8, metavar="N", help="timed steps; default 8")
    p.add_argument("--data", metavar="DIR", help="beside each row one on this packed set")
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
        compare(rows)
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
                if not runs_on(engine, world):
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


def runs_on(engine: str, world: int) -> bool:
    """Whether an engine is anything of its own on `world` ranks."""
    return {"single": world == 1, "hsdp": world >= 2 * NODES_OF_HSDP}.get(engine, True)


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
