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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from benchmarks.plane_table import Judged, judge, picture, rectification_ms, table
from benchmarks.ranks import ROOT, Launch, run_all
from benchmarks.runs import gpus, seconds_per_epoch, training
from benchmarks.setting import write_figures
from benchmarks.variants import prepared, variants_parser
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.errors import UserError

CONFIG = ROOT / "benchmarks" / "configs" / "plane-256.yaml"
VARIANTS: dict[str, list[str]] = {
    "none": ["model.align=none", "data.mixtures=0"],
    "plane": [],
    "mean": ["model.skip_merge=mean"],
    "max_mean": ["model.skip_merge=max_mean"],
    "max_mean_var": ["model.skip_merge=max_mean_var"],
    "position": ["model.token_embedding=position"],
    "view": ["model.token_embedding=view"],
    "no_embedding": ["model.token_embedding=none"],
    "free_normals": ["model.normals=free"],
    "slopes": ["model.normals=slopes"],
    "no_mixtures": ["data.mixtures=0"],
    "every_view": ["data.drop_views=0"],
    "exact_cameras": ["data.camera_jitter=0"],
    "every_view_exact": ["data.drop_views=0", "data.camera_jitter=0"],
}
STEPS_TO_TIME, LOG_EVERY = 200, 20
SHARE = 0.97
"""Of the minutes that steps take; the rest is for validations and the save."""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py plane`; fields that are named win over a variant's."""
    return variants_parser(
        __doc__,
        prog,
        name="plane",
        config=str(CONFIG),
        variants=VARIANTS,
        default=["none", "plane"],
        minutes=5.0,
    )


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train every variant, judge it, and write tables and picture."""
    args = parser(prog).parse_args(argv)
    fields = prepared(args)
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


# -- runs ----------------------------------------------------------------------------------


def epochs_that_fit(args: argparse.Namespace, fields: Overrides) -> int:
    """Time the last variant, alone."""
    sets = [
        f"training.log_every_n_steps={LOG_EVERY}", f"training.seed={args.seeds[0]}", *VARIANTS[args.variants[-1]]
    ]  # fmt: skip
    folder = args.runs / "timing"
    timing = training(folder, fields, sets, "--stop-after-steps", str(STEPS_TO_TIME))
    (seconds,) = seconds_per_epoch([timing], args.runs)
    return max(1, int(SHARE * args.minutes * 60 / seconds))


def trained(args: argparse.Namespace, fields: Overrides, epochs: int) -> list[tuple[str, Path]]:
    """Train every variant with every seed, as many at a time as there are GPUs for; return their folders."""
    done: list[str] = []

    def note(one: Launch, fault: str) -> None:
        print(f"{one.name}: {fault or 'done'}", flush=True)
        if not fault:
            done.append(one.name)

    names = {f"{variant}-{seed}": (variant, seed) for variant in args.variants for seed in args.seeds}
    launches = [
        training(
            args.runs / name,
            fields,
            [f"training.epochs={epochs}", f"training.seed={seed}", *VARIANTS[variant]],
        )
        for name, (variant, seed) in names.items()
    ]
    run_all(launches, gpus() * args.per_gpu, args.runs, note, float("inf"))
    if not done:
        raise UserError(f"no run came to its end; {args.runs} has their logs")
    return [(name, args.runs / name) for name in names if name in done]


if __name__ == "__main__":
    run()
