"""What cameras bring: one network trained on views as they are and on views rectified to the plane, for minutes.

    python launch/benchmark.py plane --to results --minutes 5 --variants none plane
    python launch/benchmark.py plane --to results --epochs 30 --variants mean max_mean max_mean_var --seeds 1 2 --per-gpu 3
    python launch/benchmark.py plane --to results --minutes 5 --variants plane --real IN OUT --samples sample_0005 sample_0006

Every variant is a run of `launch/train.py` on a GPU, of `benchmarks/configs/plane-256.yaml` unless `--config` names
another, for as many epochs as fit into `--minutes` with the GPU to itself (found by a short run before), or `--epochs`.
Its last weights are judged on the held-out built-in materials and on a set of one's own with a `cameras.json`
(`--real`), also with one view missing and with every view off by up to, or by just, 4 of 512 pixels. `--to` gets `plane.json`,
`plane.md` and `plane.png`, a picture of held-out built-in materials alone: a set of one's own may not be shown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.options import fields_of, measurement
from benchmarks.plane_report import Judged, judge, picture, rectification_ms, table
from benchmarks.ranks import ROOT, Launch, run_all
from benchmarks.setting import write_figures
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.data.open import fill_cache, open_source
from neuropbr_dist.errors import UserError
from neuropbr_dist.monitor.run_logs import HISTORY, METRICS, run_log

CONFIG = ROOT / "benchmarks" / "configs" / "plane-256.yaml"
VARIANTS: dict[str, list[str]] = {
    "none": ["model.align=none"],
    "plane": [],
    "mean": ["model.skip_merge=mean"],
    "max_mean": ["model.skip_merge=max_mean"],
    "max_mean_var": ["model.skip_merge=max_mean_var"],
    "position": ["model.token_embedding=position"],
    "view": ["model.token_embedding=view"],
    "no_embedding": ["model.token_embedding=none"],
    "free_normals": ["model.normals=free"],
    "slopes": ["model.normals=slopes"],
    "every_view": ["data.drop_views=0"],
    "exact_cameras": ["data.camera_jitter=0"],
    "every_view_exact": ["data.drop_views=0", "data.camera_jitter=0"],
}
STEPS_TO_TIME, LOG_EVERY = 200, 20
SHARE = 0.97
"""Of the minutes that steps take; the rest is for validations and the save."""
SET_HERE = {
    "training.checkpoint_dir": "--runs names where the runs go",
    "training.seed": "--seeds says them",
}


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py plane`; fields that are named win over a variant's."""
    p = measurement(__doc__, prog)
    p.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the results go")
    p.add_argument("--runs", type=Path, default=ROOT / "runs" / "plane", metavar="DIR", help="run folders")
    p.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["none", "plane"], metavar="NAME",
                   help=f"of {', '.join(VARIANTS)}; default none plane")  # fmt: skip
    p.add_argument("--seeds", type=int, nargs="+", default=[42], metavar="N",
                   help="each variant with each; also the key of the materials; default 42")  # fmt: skip
    p.add_argument("--minutes", type=float, default=5.0, metavar="N", help="of a run; default %(default)s")
    p.add_argument(
        "--per-gpu", type=int, default=1, metavar="N", help="runs that share a GPU; needs --epochs"
    )
    p.add_argument(
        "--real", nargs=2, metavar=("IN", "OUT"), help="a set with cameras.json to judge by as well"
    )
    p.add_argument("--samples", nargs="+", metavar="NAME", help="those of --real that get a row of their own")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train every variant, judge it, and write tables and picture."""
    args = parser(prog).parse_args(argv)
    fields = fields_of(args, SET_HERE)
    if fields.config is None:
        fields = replace(fields, config=str(CONFIG))
    if args.per_gpu > 1 and args.epochs is None:
        raise UserError("--per-gpu needs --epochs: a run's speed depends on its neighbours'")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args.to.mkdir(parents=True, exist_ok=True)
    make_materials(fields, args.seeds)
    epochs = args.epochs or epochs_that_fit(args, fields)
    found, text = [], ""
    for name, folder in trained(args, fields, epochs):
        found.append(judge(name, folder, args.real, args.samples))
        text = table(
            found, sys.argv[1:] if argv is None else argv
        )  # written each time: a lent machine may go early
        (args.to / "plane.md").write_text(text)
        picture(found, args.to / "plane.png")
        write_figures(args.to / "plane.json", figures(found))
    print(text)


def figures(found: Sequence[Judged]) -> dict[str, Any]:
    """What `plane.json` holds beside the versions."""
    runs = [
        {
            "name": one.name, "variant": VARIANTS[one.variant], "start": one.start, "rows": one.rows,
            "steps": one.steps, "ms_per_step": one.ms,
        }
        for one in found
    ]  # fmt: skip
    return {"runs": runs, "rectification_ms": rectification_ms()}


def make_materials(fields: Overrides, seeds: Sequence[int]) -> None:
    """Make the built-in materials of every seed first: runs beside each other would all make them."""
    for seed in seeds:
        fill_cache(open_source(fields.configuration().data, seed))


# -- runs ----------------------------------------------------------------------------------


def launch(args: argparse.Namespace, name: str, fields: Overrides, sets: Sequence[str], *more: str) -> Launch:
    """Return one run of `launch/train.py`; fields of the command line come last and win."""
    assignments = [word for assignment in sets for word in ("--set", assignment)]
    own = ["--checkpoint-dir", str(args.runs / name), "--overwrite", *more]
    train = str(ROOT / "launch" / "train.py")
    return Launch(name=name, argv=[train, *own, *assignments, *fields.argv()], ranks=1)


def gpus() -> list[int]:
    """Return the GPUs' indices; a CPU counts as one."""
    return list(range(torch.cuda.device_count())) or [0]


def epochs_that_fit(args: argparse.Namespace, fields: Overrides) -> int:
    """Time the last variant, alone."""
    sets = [f"training.log_every_n_steps={LOG_EVERY}", f"training.seed={args.seeds[0]}"]
    faults: list[str] = []
    timing = launch(
        args, "timing", fields, [*sets, *VARIANTS[args.variants[-1]]], "--stop-after-steps", str(STEPS_TO_TIME)
    )  # fmt: skip
    run_all([timing], gpus()[:1], args.runs, lambda _, fault: faults.append(fault), float("inf"))
    if any(faults):
        raise UserError(f"the run to be timed failed: {faults[0]}")
    ms = ms_per_step(args.runs / "timing")
    start = run_log(args.runs / "timing", HISTORY).read()[0]
    epoch_s = ms / 1000 * start["train_samples"] / start["global_batch"]
    print(f"{ms:.1f} ms a step, {epoch_s:.1f} s an epoch of {start['train_samples']} samples", flush=True)
    return max(1, int(SHARE * args.minutes * 60 / epoch_s))


def ms_per_step(folder: Path) -> float:
    """Return the median over a run's log lines; not the first ones."""
    lines = run_log(folder, METRICS).read()
    speeds = [line["speed/ms_per_step"] for line in lines if "speed/ms_per_step" in line]
    return statistics.median(speeds[len(speeds) // 3 :])


def trained(args: argparse.Namespace, fields: Overrides, epochs: int) -> list[tuple[str, Path]]:
    """Train every variant with every seed, as many at a time as there are GPUs for; return their folders."""
    done: list[str] = []

    def note(one: Launch, fault: str) -> None:
        print(f"{one.name}: {fault or 'done'}", flush=True)
        if not fault:
            done.append(one.name)

    names = {f"{variant}-{seed}": (variant, seed) for variant in args.variants for seed in args.seeds}
    launches = [
        launch(args, name, fields, [f"training.epochs={epochs}", f"training.seed={seed}", *VARIANTS[variant]])
        for name, (variant, seed) in names.items()
    ]
    run_all(launches, gpus() * args.per_gpu, args.runs, note, float("inf"))
    if not done:
        raise UserError(f"no run came to its end; {args.runs} has their logs")
    return [(name, args.runs / name) for name in names if name in done]


if __name__ == "__main__":
    run()
