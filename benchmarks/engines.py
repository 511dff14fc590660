"""Engines on real GPUs: do they agree, and what do they hold in memory?

    python benchmarks/engines.py --worlds 1 2 4 --folder engines

One launch an engine and world size (`engine_rows.py`), several at a time: neither question is one of
time. Tables and rows are written after each launch; one that fails leaves its error.

Agreement: the suite of `tests/support/parity.py` on GPUs, six steps with the GAN and clipping on. In float64
and float32 against the plain loop on one GPU, in bf16 against the engine `single` in bf16. bf16's bound is
twice its own noise, which is how far that engine is from the plain loop in float32.
Memory: the default preset, bf16, what is allocated when all gradients are there, against the formula.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.ranks import Launch, run_all
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser

WORKER = Path(__file__).with_name("engine_rows.py")
EVERYWHERE = ["ddp", "fsdp", "zero1", "zero2", "zero3"]
COMPILED_AT = 2
"""World size that has a row with compiled blocks; HSDP's is at 4, its smallest."""
BOUNDS = {"float64": 1e-12, "float32": 1e-5}
NOISE_BOUND = 2.0
"""In yardsticks."""
MEMORY_BOUND = 0.1


def launches(args: argparse.Namespace) -> list[Launch]:
    """One launch an engine and world size."""
    found = []
    for world in sorted(args.worlds, reverse=True):  # the longest first
        for engine in args.engines:
            if (engine == "hsdp" and world < 4) or (engine == "single" and world > 1):
                continue
            name = f"{engine}-{world}"
            compiled = not args.no_compile and (world == COMPILED_AT or engine == "hsdp")
            own = ["--out", str(args.folder / f"{name}.json"), "--device", args.device]
            found.append(
                Launch(name=name, ranks=world, argv=[str(WORKER), engine, *own, *["--compile"] * compiled])
            )
    return found


def as_tables(rows: list[dict[str, Any]]) -> str:
    """All rows as two Markdown tables."""
    agreement = [
        "| engine | ranks | a sample | precision | views | accumulation | recompute | compile | all | parameters | losses | update "
        "| bound | |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    memory = [
        "| engine | ranks | MiB with gradients | formula | ratio | MiB between steps | |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: (r["world"], r["engine"])):
        head = f"| {r['engine']} | {r['world']} |"
        cut = f"{r.get('sample_ranks', '')} | {r.get('precision', '')} | {r.get('views', '')} | {r.get('accumulation', '')} | {r.get('recompute', '')} | {r.get('compile', '')} |"
        if "error" in r:
            error = r["error"].replace("|", "/").replace("\n", " ")
            if r.get("what") == "memory":
                memory.append(f"{head} | | | | {error} |")
            else:
                agreement.append(f"{head} {cut} | | | | | {error} |")
        elif r["what"] == "memory":
            ok = "ok" if abs(r["ratio"] - 1) <= MEMORY_BOUND else "OUT"
            figures = f"{r['with_gradients']:.0f} | {r['formula']:.0f} | {r['ratio']:.3f} | {r['between_steps']:.0f}"
            memory.append(f"{head} {figures} | {ok} |")
        else:
            value, bound = judged(r)
            figures = " | ".join(f"{r[what]:.1e}" for what in ("all", "parameters", "losses", "update"))
            agreement.append(f"{head} {cut} {figures} | {bound:.1e} | {'ok' if value <= bound else 'OUT'} |")
    return "\n".join([*agreement, "", *memory])


def judged(row: dict[str, Any]) -> tuple[float, float]:
    """What a row of agreement is judged by, and its bound: everything, or in bf16 the update."""
    if row["precision"] == "bf16":
        return row["update"], NOISE_BOUND * row["yardstick"]["update"]
    return row["all"], BOUNDS[row["precision"]]


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py engines`."""
    p = new_parser(__doc__ or "", prog)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    add_debug(p)
    p.add_argument("--worlds", nargs="+", type=int, default=[1, 2, 4], metavar="N", help="default 1 2 4")
    p.add_argument("--engines", nargs="+", default=["single", *EVERYWHERE, "hsdp"], metavar="NAME")
    p.add_argument("--share", type=int, default=2, metavar="N", help="launches on a GPU at a time; default 2")
    p.add_argument("--limit", type=float, default=240, metavar="SECONDS", help="of one launch; default 240")
    p.add_argument("--no-compile", action="store_true", help="no rows with compiled blocks")
    p.add_argument("--device", default="cuda", help="cpu: a rehearsal, without memory")
    p.add_argument("--folder", type=Path, default=Path("engines"), metavar="DIR", help="default ./engines")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run every launch and write the tables after each."""
    args = parser(prog).parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []

    def note(launch: Launch, fault: str) -> None:
        engine, world = launch.name.split("-")
        file = args.folder / f"{launch.name}.json"
        rows.extend(json.loads(file.read_text()) if file.exists() else [])
        if fault:
            rows.append({"engine": engine, "world": int(world), "error": fault})
        (args.folder / "engines.json").write_text(json.dumps(rows, indent=1) + "\n")
        (args.folder / "engines.md").write_text(as_tables(rows) + "\n")
        print(f"{launch.name}: {fault or 'done'}", flush=True)

    gpus = range(torch.cuda.device_count() if args.device == "cuda" else max(args.worlds))
    slots = [*gpus] * args.share
    run_all(launches(args), slots, args.folder, note, args.limit)
    print(as_tables(rows))


if __name__ == "__main__":
    run()
