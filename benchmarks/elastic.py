"""Elastic resume on real GPUs: a run whose number of ranks changes, beside the same run left alone.

    python benchmarks/elastic.py --worlds 2 1 2 --engines fsdp zero2 --folder elastic

Two runs an engine on the same samples, the guide's preset with its GAN on: `whole` makes all steps on the first
number of ranks, `elastic` stops after `--steps`, and goes on from its save on the next number. In float32 without
TF32 and with deterministic algorithms, so that nothing differs but the order of sums over samples; a GAN doubles
such a difference every step or two. Judged are the losses of the first step on another number of ranks.
All engines run at a time. The fields of a run go to every run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.options import ENGINE, add_size, fields_of, measurement
from benchmarks.ranks import ROOT, Launch, run_all
from benchmarks.scaling import ENGINES
from neuropbr_dist.cluster import Environment, pick_device
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.errors import UserError
from neuropbr_dist.monitor.run_logs import METRICS, run_log

BOUND = 1e-4
"""Of a loss, relative, or absolute where it is below 1."""
LOSSES = ("G_loss", "D_loss")
SETTINGS = {
    "data.builtin": True, "data.builtin_count": 8, "model.encoder_pretrained": False,
    "optimizer.scheduler_warmup_epochs": 0, "training.batch_size": 1, "training.gan_start_epoch": 0,
    "training.log_every_n_steps": 1, "training.val_every_n_epochs": 1000, "training.save_latest_every_n_epochs": 1000,
    "training.precision": "fp32", "training.deterministic": True, "training.compile": "off",
}  # fmt: skip


SIZE = 256  # px
SET_HERE = ENGINE | {"training.checkpoint_dir": "--folder names where the runs go"}


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py elastic`."""
    p = measurement(__doc__, prog)
    p.add_argument("--worlds", nargs="+", type=int, default=[2, 1, 2], metavar="N", help="default 2 1 2")
    p.add_argument("--engines", nargs="+", choices=ENGINES, default=["fsdp", "zero2"], metavar="NAME")
    p.add_argument("--steps", type=int, default=6, metavar="N", help="on each number of ranks; default 6")
    add_size(p, SIZE)
    p.add_argument("--limit", type=float, default=240, metavar="SECONDS", help="of one launch; default 240")
    p.add_argument("--folder", type=Path, default=Path("elastic"), metavar="DIR", help="default ./elastic")
    return p


def rounds(args: argparse.Namespace, fields: Overrides) -> list[list[Launch]]:
    """Return launches that may run at a time; each round resumes what the one before has saved."""
    found: list[list[Launch]] = []
    settings = SETTINGS | {"training.global_batch_size": max(args.worlds)}
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    last = args.steps * len(args.worlds)
    for leg, world in enumerate(args.worlds):
        found.append([])
        for engine in args.engines:
            new = [*ENGINES[engine], *sets, *fields.argv()]
            if leg == 0:
                found[0].append(launch(args, engine, "whole", world, last, new))
            goes_on = ["--resume", "auto"] if leg else new
            found[leg].append(launch(args, engine, "elastic", world, args.steps * (leg + 1), goes_on))
    return found


def launch(
    args: argparse.Namespace, engine: str, name: str, world: int, last: int, argv: Sequence[str]
) -> Launch:
    """Return `launch/train.py` in one of the two runs' folders, up to step `last`."""
    folder = args.folder / f"{engine}-{name}"
    own = ["--checkpoint-dir", str(folder), "--stop-after-steps", str(last)]
    return Launch(
        name=f"{engine}-{name}-{last}-on-{world}", ranks=world,
        argv=[str(ROOT / "launch" / "train.py"), *own, *argv],
    )  # fmt: skip


def losses(folder: Path) -> dict[int, dict[str, float]]:
    """By step."""
    return {
        line["step"]: {name: line[f"train/{name}"] for name in LOSSES}
        for line in run_log(folder, METRICS).read()
        if f"train/{LOSSES[0]}" in line
    }


def off(found: float, wanted: float) -> float:
    """Relative difference, absolute below 1: a discriminator that wins has a loss of 0."""
    return abs(found - wanted) / max(1.0, abs(wanted))


def as_table(args: argparse.Namespace) -> tuple[str, bool]:
    """Markdown, a line a step; and whether every change of ranks is within the bound."""
    lines = [
        "| engine | step | ranks | G_loss whole | elastic | off | D_loss whole | elastic | off | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    good = True
    for engine in args.engines:
        whole, elastic = (losses(args.folder / f"{engine}-{run}") for run in ("whole", "elastic"))
        for step, wanted in sorted(whole.items()):
            leg = (step - 1) // args.steps
            judged = leg > 0 and step == args.steps * leg + 1
            cells, worst = [], 0.0
            for name in LOSSES:
                apart = off(elastic[step][name], wanted[name])
                worst = max(worst, apart)
                cells.append(f"{wanted[name]:.6f} | {elastic[step][name]:.6f} | {apart:.1e}")
            good &= not judged or worst <= BOUND
            verdict = ("ok" if worst <= BOUND else "OUT") if judged else ""
            lines.append(f"| {engine} | {step} | {args.worlds[leg]} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines), good


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run every round, then compare; exit code 1 if a change of ranks shows."""
    args = parser(prog).parse_args(argv)
    fields = fields_of(args, SET_HERE, SIZE)
    if fields.configuration().training.device == "auto":
        fields = fields.with_flag("--device", "cuda")
    device = pick_device(fields.configuration().training.device, Environment(launcher="none"))
    gpus = range(torch.cuda.device_count() if device.type == "cuda" else max(args.worlds))
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    args.folder.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []

    def note(launch: Launch, fault: str) -> None:
        faults.extend([f"{launch.name}: {fault}"] if fault else [])
        print(f"{launch.name}: {fault or 'done'}", flush=True)

    for launches in rounds(args, fields):
        run_all(launches, [*gpus] * len(launches), args.folder, note, args.limit)
        if faults:
            raise UserError("; ".join(faults))
    table, good = as_table(args)
    (args.folder / "elastic.md").write_text(table + "\n")
    print(table)
    sys.exit(not good)


if __name__ == "__main__":
    run()
