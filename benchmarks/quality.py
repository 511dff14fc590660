"""How good the maps get, and which defaults are sane: variants of one run, trained side by side.

    python benchmarks/quality.py --input-dir IN --output-dir OUT --minutes 7 --to results
    python benchmarks/quality.py --builtin 64 --minutes 7 --to results --variants no_gan gan

Every variant is a run of `launch/train.py` on a GPU of its own (`--gpus-each N`: on N, by torchrun), with
the same seed, the same materials held out and the same number of epochs: as many as the default, GAN on,
does in `--minutes`, found by a short run before. Epochs of warm-up and the GAN's start scale with it, from
the default preset's 5 of 100. A variant that needs longer is stopped, saves, and says so in the table.
`--to` gets `quality.md`, `quality.png` and `metrics.jsonl`, all runs' lines in one file. The fields of a run go to every run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from benchmarks.options import add_size, fields_of, measurement
from benchmarks.quality_table import Result, picture, quality_page
from benchmarks.ranks import LATE, ROOT, Launch, run_all
from benchmarks.runs import gpus, seconds_per_epoch, training
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.errors import UserError

NO_GAN = ["model.use_gan=false", "loss.w_gan=0"]
VARIANTS: dict[str, list[str]] = {
    "no_gan": NO_GAN,
    "gan": [],
    "gan_weak": ["loss.w_gan=0.01"],
    "gan_slow_d": ["optimizer.d_lr=2e-5"],
    "gan_weak_slow_d": ["loss.w_gan=0.01", "optimizer.d_lr=2e-5"],
    "gan_bce": ["loss.gan_loss_type=bce"],
    "gan_bce_smooth": ["loss.gan_loss_type=bce", "loss.gan_label_smoothing=0.1"],
    "gan_4_layers": ["model.discriminator_n_layers=4"],
    "gan_augmented": ["data.augment_flips=true", "data.augment_rotations=true"],
    "gan_ema": ["training.ema_decay=0.999"],
    "batch_norm": [*NO_GAN, "model.norm=batch", "model.encoder_norm=batch"],
    "frozen_encoder_norm": [*NO_GAN, "model.encoder_norm=frozen_batch"],
    "lr_half": [*NO_GAN, "optimizer.g_lr=1e-4"],
    "lr_double": [*NO_GAN, "optimizer.g_lr=4e-4"],
    "batch_4": [*NO_GAN, "training.batch_size=4", "training.global_batch_size=4"],
    "ema": [*NO_GAN, "training.ema_decay=0.999"],
}
FIRST = (
    "no_gan",
    "gan",
    "gan_weak",
    "gan_slow_d",
    "gan_weak_slow_d",
    "gan_bce_smooth",
    "batch_norm",
    "lr_half",
)
"""As many as a large host has GPUs."""

# The default preset, 512 wide instead of 2048: 54 M + 15 M parameters, so that minutes show something at 512 px.
BASE = (
    "model.encoder_pretrained=false", "model.transformer_dim=512", "model.transformer_num_heads=8",
    "data.render_curriculum=1", "data.val_ratio=0.25", "training.compile=off", "training.keep_latest=1",
    "training.save_best_only=true", "training.save_latest_every_n_epochs=1000000", "training.log_images_every_n_epochs=1000000",
)  # fmt: skip
VALIDATIONS = 12
STEPS_TO_TIME, LOG_EVERY = 60, 10
SHARE = 0.8
"""Of a variant's minutes that steps take; the rest is for the start, validations and saves."""
STARTED_AT = 0.05  # of the run: the default preset's warm-up and GAN start, 5 of 100 epochs
SIZE = 512  # px, of built-in materials
SET_HERE = {
    "training.checkpoint_dir": "--runs names where the runs go",
    "data.builtin": "--builtin N says it",
    "data.builtin_count": "--builtin N says it",
}


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py quality`; fields that are named win over a variant's."""
    p = measurement(__doc__, prog)
    p.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the results go")
    p.add_argument("--runs", type=Path, default=ROOT / "runs" / "quality", metavar="DIR", help="run folders")
    p.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(FIRST), metavar="NAME",
                   help=f"of {', '.join(VARIANTS)}; default {' '.join(FIRST)}")  # fmt: skip
    p.add_argument("--minutes", type=float, default=7.0, metavar="N", help="a variant; default %(default)s")
    p.add_argument("--gpus-each", type=int, default=1, metavar="N", help="default %(default)s")
    p.add_argument("--per-gpu", type=int, default=1, metavar="N",
                   help="variants that share a GPU (below 1,024 px the host is the limit); needs --epochs")  # fmt: skip
    p.add_argument("--builtin", type=int, default=0, metavar="N", help="train on N built-in materials")
    add_size(p, SIZE)
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Time, train, write the tables and the picture."""
    args = parser(prog).parse_args(argv)
    fields = fields_of(args, SET_HERE, SIZE if args.builtin else None)
    if args.per_gpu > 1 and args.epochs is None:
        raise UserError("--per-gpu needs --epochs: a variant's speed depends on its neighbours'")
    if args.builtin:
        fields = fields.with_field("data.builtin", True).with_field("data.builtin_count", args.builtin)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args.to.mkdir(parents=True, exist_ok=True)
    epochs = args.epochs or epochs_that_fit(args, fields)
    print(f"{epochs} epochs a variant", flush=True)
    results = trained(args, fields, epochs)
    text = quality_page(args, sys.argv[1:] if argv is None else argv, results)
    (args.to / "quality.md").write_text(text)
    picture(results, args.to / "quality.png")
    lines = [json.dumps({"variant": result.name, **line}) for result in results for line in result.lines()]
    (args.to / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    print(text)


# -- runs ----------------------------------------------------------------------------------


def launch(args: argparse.Namespace, name: str, fields: Overrides, sets: Sequence[str], *more: str) -> Launch:
    """Return one run with what all variants have in common."""
    engine = ["--engine", "ddp"] if args.gpus_each > 1 else []
    return training(args.runs / name, fields, [*BASE, *sets], *more, *engine, ranks=args.gpus_each)


def epochs_that_fit(args: argparse.Namespace, fields: Overrides) -> int:
    """Time the default with the GAN on; it also makes the built-in materials, once for all."""
    sets = [f"training.log_every_n_steps={LOG_EVERY}", "training.gan_start_epoch=1"]
    timing = launch(args, "timing", fields, sets, "--stop-after-steps", str(STEPS_TO_TIME))
    return max(2, round(SHARE * args.minutes * 60 / seconds_per_epoch(timing, args.runs / "timing")))


def trained(args: argparse.Namespace, fields: Overrides, epochs: int) -> list[Result]:
    """Train every variant once, as many at a time as there are GPUs for."""
    begin, results = max(1, round(STARTED_AT * epochs)), []
    schedule = [
        f"training.epochs={epochs}", f"training.gan_start_epoch={begin}", f"optimizer.scheduler_warmup_epochs={begin}",
        f"training.val_every_n_epochs={max(1, epochs // VALIDATIONS)}",
    ]  # fmt: skip

    def note(one: Launch, fault: str) -> None:
        late = fault.startswith(LATE)  # it has saved and ended by itself
        result = Result(one.name, args.runs / one.name, VARIANTS[one.name], late)
        if (not fault or late) and len(result.validations()) > 1:
            results.append(result)
        print(f"{one.name}: {fault or 'done'}", flush=True)

    launches = [launch(args, name, fields, [*schedule, *VARIANTS[name]]) for name in args.variants]
    run_all(launches, gpus() * args.per_gpu, args.runs, note, 60 * args.minutes)
    if not results:
        raise UserError("no variant was trained to a validation")
    return sorted(results, key=lambda result: args.variants.index(result.name))


if __name__ == "__main__":
    run()
