"""Cost of saves and of a restart, by a real run that stops and goes on.

Two runs of `launch/train.py` in processes of their own: the first saves after each of a few steps, the
second resumes it for one more step. All figures are the runs' own (`timings.jsonl`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.options import fields_of, measurement
from benchmarks.ranks import ROOT, run_alone
from benchmarks.setting import write_figures
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.monitor.run_logs import TIMINGS, run_log
from neuropbr_dist.training.facts import device_name

GB = 1e9
# The state's size doesn't depend on the pictures' unless asked for; two samples are quickly made.
ON_GPU = ["--config", "guide", "--set", "data.builtin_count=2"]
ON_CPU = ["--config", "demo", "--set", "data.image_size=32", "--set", "data.builtin_count=4"]
QUIET = ["training.val_every_n_epochs=100000", "training.save_every_n_epochs=100000", "training.epochs=1000",
         "training.use_tensorboard=false", "training.gan_start_epoch=0"]  # fmt: skip
BEFORE, MEASURED = 2, 4
"""Steps before the first save (compiled by then), and saves after that; the first of them is told apart."""


SET_HERE = {
    "training.checkpoint_dir": "--folder names where to save",
    "training.save_every_n_steps": "every step is followed by a save",
}


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py checkpoint`."""
    p = measurement(__doc__, prog, config=None)
    p.add_argument("--folder", type=Path, metavar="DIR", help="where to save; default: a temporary folder")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    p.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="on this machine, by torchrun; default 1"
    )
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print the table; write JSON where asked."""
    args = parser(prog).parse_args(argv)
    fields = fields_of(args, SET_HERE)
    with TemporaryDirectory() as temporary:
        found = measure(args.folder or Path(temporary), fields.argv(), args.ranks)
    print(as_table(found))
    write_figures(args.out, found)


def measure(folder: Path, argv: Sequence[str], ranks: int = 1) -> dict[str, Any]:
    """Train, save, resume in `folder`; the figures by name, seconds and bytes.

    Raises:
        UserError: a run failed; its last lines.
    """
    path = folder / "run"
    device = ON_GPU if torch.cuda.is_available() else ON_CPU
    common = [*(word for s in QUIET for word in ("--set", s)), "--checkpoint-dir", str(path)]
    last = BEFORE + MEASURED
    saves = ["--set", "training.save_every_n_steps=1", "--stop-after-steps", str(last)]
    launch(ranks, [*device, *common, *argv, *saves])
    launch(ranks, ["--resume", "auto", "--checkpoint-dir", str(path), "--stop-after-steps", str(last + 1)])
    lines = run_log(path, TIMINGS).read()
    timed = [line["save"] for line in lines if "save" in line][:last]
    fresh, restart = [line["start"] for line in lines if "start" in line]
    size = timed[-1]["bytes"]
    behind = statistics.median(save["behind_s"] for save in timed[1:])
    reading = restart["checkpoint found and verified"] + restart["load"]
    return {
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "torch": torch.__version__,
        "ranks": ranks,
        "words": list(argv),
        "bytes": size,
        "first_save": timed[0],
        "later_saves": timed[1:],
        "held_first_s": timed[0]["waited_s"] + timed[0]["held_s"],
        "held_later_s": max(save["held_s"] for save in timed[1:]),
        "write_gb_s": size / behind / GB,
        "verify_and_load_gb_s": size / reading / GB,
        "fresh_start_s": fresh,
        "restart_s": restart,
    }


def launch(ranks: int, argv: Sequence[str]) -> None:
    """One run of `launch/train.py` on `ranks` processes.

    Raises:
        UserError: it failed; with its last lines.
    """
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    )
    run_alone([*launcher, str(ROOT / "launch" / "train.py"), *argv])


def as_table(found: dict[str, Any]) -> str:
    """Markdown, for a dated file in benchmarks/."""
    first, later = found["first_save"], found["later_saves"]
    rows = [
        ("checkpoint", f"{found['bytes'] / GB:.2f} GB"),
        (
            "training held, first save",
            f"{found['held_first_s']:.3f} s (of it for memory {first['waited_s']:.3f})",
        ),
        ("training held, later saves (longest copy)", f"{found['held_later_s']:.3f} s"),
        (
            "waited for the save before, later saves",
            f"{max(s['waited_s'] for s in later):.2f} s (a save every step)",
        ),
        ("written behind training", f"{found['write_gb_s']:.2f} GB/s"),
        ("verified and loaded", f"{found['verify_and_load_gb_s']:.2f} GB/s"),
        *((f"restart: {phase}", f"{seconds:.2f} s") for phase, seconds in found["restart_s"].items()),
        ("restart, in all", f"{sum(found['restart_s'].values()):.1f} s"),
    ]
    head = f"{found['device']}, torch {found['torch']}, {found['ranks']} rank(s)"
    return "\n".join([head, "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
