"""How good a recipe's maps get, and what its parts bring: variants of one run, each with several seeds, judged alike.

    python launch/benchmark.py quality --to results --minutes 8 --variants recipe no_render no_ssim --seeds 42 43
    python launch/benchmark.py quality --to results --epochs 31 --variants recipe gan gan_light --real IN OUT
    python launch/benchmark.py quality --to results --epochs 10 --variants recipe gan --init-from WEIGHTS --per-gpu 2
    python launch/benchmark.py quality --to results --gpus-per-run 2 --set training.engine=ddp --set training.cuda_graphs=on

Every variant is a run of `launch/train.py` on one GPU (`--gpus-per-run`), of the preset `recipe` unless `--config` names
another, for as many epochs as fit into `--minutes` with the GPU to itself (found by a short run of each stage), or
`--epochs`. A GAN's start scales with them. The last weights, averaged where the run does, are judged on stored views of held-out
built-in materials and on a set that nobody trained on, with a `cameras.json` (`--real`), beside mean maps, whose normals
are flat. `--to` gets `quality.md`, `quality.json`, the runs' lines in `metrics.jsonl`, and `quality.jpg`, a picture of held-out
built-in materials alone: a set of one's own may not be shown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from benchmarks.quality_table import Result, judged, picture, quality_page
from benchmarks.ranks import Launch, run_all
from benchmarks.runs import gpus, seconds_per_epoch, training
from benchmarks.setting import write_figures
from benchmarks.variants import prepared, variants_parser
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.config import MATERIAL_CHANGES, Stage, load, stages_of
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.config.stages import ONE_STAGE
from neuropbr_dist.errors import UserError


def of_one_stage(stage: Stage) -> list[str]:
    """Return the assignments that make `stage` the only one of a run."""
    own = {name: getattr(stage, name.partition(".")[2]) for name in ONE_STAGE}
    return ["training.stages=[]", *(f"{name}={json.dumps(value)}" for name, value in own.items())]


GAN = ["model.use_gan=true", "loss.w_gan=0.05", "training.gan_start_epoch={late}", "model.discriminator_n_layers=3"]  # fmt: skip
"""Of a patch of 70 pixels, as pix2pix has it: at 256 px the guide's six layers judge the whole picture at once."""
VARIANTS: dict[str, list[str]] = {
    "recipe": [],
    "no_render": ["loss.w_render=0"],
    "strong_render": ["loss.w_render=2"],
    "no_ssim": ["loss.w_ssim=0"],
    "even_maps": ["loss.w_roughness=1", "loss.w_normal_map=1"],
    "light_normals": ["loss.w_normal_map=2"],
    "no_mixtures": ["data.mixtures=0"],
    "no_changes": [f"data.{change}=0" for change in MATERIAL_CHANGES if change != "mixtures"],
    "no_any_roughness": ["data.any_roughness=0"],
    "less_any_roughness": ["data.any_roughness=0.25"],
    "relief": ["data.relief=0.7"],
    "own_relief": ["data.other_relief=0"],
    "more_other_relief": ["data.other_relief=0.6"],
    "relief_less_any_roughness": ["data.relief=0.7", "data.any_roughness=0.25"],
    "no_bench": ["data.bench_scenes=0"],
    "more_bench": ["data.bench_scenes=0.5"],
    "large_alone": of_one_stage(stages_of(load("recipe"))[-1]),
    "more_missing": ["data.drop_views=0.4"],
    "every_view_exact": ["data.drop_views=0", "data.camera_jitter=0"],
    "no_transformer": ["model.use_transformer=false"],
    "no_align": ["model.align=none"],
    "no_ema": ["training.ema_decay=null"],
    "single_view": ["data.views=1"],
    "lr_half": ["optimizer.g_lr=2e-4"],
    "lr_double": ["optimizer.g_lr=8e-4"],
    "gan": GAN,
    "gan_early": [*GAN, "training.gan_start_epoch={early}"],
    "gan_light": [*GAN, "loss.w_gan=0.01"],
    "gan_strong": [*GAN, "loss.w_gan=0.2"],
    "gan_slow_d": [*GAN, "optimizer.d_lr=2e-5"],
    "gan_bce_smooth": [*GAN, "loss.gan_loss_type=bce", "loss.gan_label_smoothing=0.1"],
    "gan_feature_matching": [*GAN, "loss.w_feature_matching=1"],
    "gan_spectral": [*GAN, "model.discriminator_norm=spectral"],
    "gan_sees_views": [*GAN, "model.discriminator_input=maps_and_views"],
    "gan_spectral_sees_views": [
        *GAN,
        "model.discriminator_norm=spectral",
        "model.discriminator_input=maps_and_views",
    ],
    "gan_2_layers": [*GAN, "model.discriminator_n_layers=2"],
    "gan_6_layers": [*GAN, "model.discriminator_n_layers=6"],
}
EARLY, LATE = 0.05, 0.6
"""Shares of the run after which a GAN may start: `{early}` and `{late}` in a variant's fields."""
STEPS_TO_TIME, LOG_EVERY = 300, 30
SHARE = 0.95
"""Of the minutes that steps take; the rest is for validations and the save."""
ONCE = (
    "training.save_best_only=true", "training.save_latest_every_n_epochs=1000000",
    "training.log_images_every_n_epochs=1000000", "training.use_tensorboard=false",
)  # fmt: skip
"""Fields of every run: nothing is written that nobody reads."""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py quality`; fields that are named win over a variant's."""
    p = variants_parser(
        __doc__, prog, name="quality", config="recipe", variants=VARIANTS, default=["recipe"], minutes=8.0
    )
    p.add_argument("--init-from", metavar="PATH", help="weights that every run starts from")
    p.add_argument("--gpus-per-run", type=int, default=1, metavar="N", help="ranks of each; default 1")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Time, train, judge; write tables and picture after each run that is judged: a lent machine may go early."""
    args = parser(prog).parse_args(argv)
    fields = prepared(args)
    epochs = args.epochs or epochs_that_fit(args, fields)
    print(f"{epochs} epochs a run", flush=True)
    results: list[Result] = []

    def judge(name: str) -> None:
        results.append(judged(name, args.runs / name, args.real, args.samples))
        write(args.to, results, sys.argv[1:] if argv is None else argv)

    with ThreadPoolExecutor(1) as judges:  # the next run begins meanwhile
        verdicts: list[Future[None]] = []

        def note(one: Launch, fault: str) -> None:
            print(f"{one.name}: {fault or 'done'}", flush=True)
            if not fault:
                verdicts.append(judges.submit(judge, one.name))

        run_all(launches(args, fields, epochs), gpus() * args.per_gpu, args.runs, note, float("inf"))
        for verdict in verdicts:
            verdict.result()
    if not results:
        raise UserError(f"no run came to its end; {args.runs} has their logs")
    print((args.to / "quality.md").read_text())


def write(to: Path, results: Sequence[Result], argv: Sequence[str]) -> None:
    """Write what the runs judged so far come to."""
    (to / "quality.md").write_text(quality_page(results, argv, VARIANTS))
    picture(results, to / "quality.jpg")
    runs = {
        one.name: {"steps": one.model.step, "ms_per_step": one.ms, "rows": one.rows, "baseline": one.baseline}
        for one in results
    }
    write_figures(to / "quality.json", {"runs": runs})
    lines = [json.dumps({"run": one.name, **line}) for one in results for line in one.lines]
    (to / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))


# -- runs ----------------------------------------------------------------------------------


def launches(args: argparse.Namespace, fields: Overrides, epochs: int) -> list[Launch]:
    """Return every variant with every seed: the first seed of all, then the second."""
    found = []
    for seed in args.seeds:
        for variant in args.variants:
            sets = [*own_fields(variant, epochs), f"training.epochs={epochs}", f"training.seed={seed}"]
            found.append(launch(args, f"{variant}-{seed}", fields, sets))
    return found


def own_fields(variant: str, epochs: int) -> list[str]:
    """Return a variant's assignments for a run of `epochs`."""
    starts = {"early": max(1, round(EARLY * epochs)), "late": max(1, round(LATE * epochs))}
    return [assignment.format(**starts) for assignment in VARIANTS[variant]]


def launch(
    args: argparse.Namespace,
    name: str,
    fields: Overrides,
    sets: Sequence[str],
    *more: str,
) -> Launch:
    """Return one run with what all have in common."""
    first = ["--init-from", args.init_from] if args.init_from else []
    return training(args.runs / name, fields, [*ONCE, *sets], *first, *more, ranks=args.gpus_per_run)


def epochs_that_fit(args: argparse.Namespace, fields: Overrides) -> int:
    """Time the last variant's stages, beside each other where there are GPUs for it; an epoch counts by the stage's share of
    all epochs."""
    own = own_fields(args.variants[-1], 1)
    stages = stages_of(replace(fields, assignments=(*own, *fields.assignments)).configuration())
    sets = [f"training.log_every_n_steps={LOG_EVERY}", f"training.seed={args.seeds[0]}", *own]
    timings = []
    for number, stage in enumerate(stages, 1):
        alone = replace(fields, assignments=(*fields.assignments, *of_one_stage(stage)))
        timings.append(
            launch(args, f"timing-{number}", alone, sets, "--stop-after-steps", str(STEPS_TO_TIME))
        )
    edges = [0, *(stage.until_epoch for stage in stages)]
    epochs = [after - before for before, after in pairwise(edges)]
    each = seconds_per_epoch(timings, args.runs)
    seconds = sum(count * an_epoch for count, an_epoch in zip(epochs, each, strict=True))
    return max(2, len(stages), int(SHARE * args.minutes * 60 * edges[-1] / seconds))


if __name__ == "__main__":
    run()
