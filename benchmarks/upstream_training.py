"""Upstream's own trainer for some minutes of a GPU, judged as the recipe is.

    python launch/benchmark.py upstream-training NEUROPBR --to results --minutes 20     # a clone, as for `upstream`

Its default preset at the recipe's side, with its own losses, networks and loader, on stored views of built-in materials
that `quality.py`'s runs train on too (the first `--materials` of them); as many epochs as fit, by the speed of a short
run before, or `--epochs`: its compilers take minutes (3:38 on an H200's host), and the short run's are for nothing. Its
rates follow the number of epochs; the first epoch, with the compilers, doesn't count as time, and where `--minutes` are
over before the last epoch it ends there. Its weights then are converted and judged on what `quality.py` judges. ResNet
starts from random weights, as the recipe's does. `--to` gets `upstream.json`, and for as long as it is wanted the run
itself under `--runs`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.judging import as_they_are, evaluate, held_out, judged_sets
from benchmarks.quality_table import COLUMNS, markdown
from benchmarks.ranks import ROOT
from benchmarks.setting import write_figures
from benchmarks.upstream import without_download
from benchmarks.variants import add_real
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser
from neuropbr_dist.config import TrainConfig, load, with_fields
from neuropbr_dist.data.builtin import generate
from neuropbr_dist.inference import load_generator
from neuropbr_dist.inference.upstream import from_upstream

TIMED = 3
"""Epochs of the run that is timed: after the first one it validates and saves, after the second it doesn't."""


class TimeIsOver(Exception):
    """Upstream's run has had its minutes, and has saved."""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py upstream-training`."""
    p = new_parser(__doc__ or "", prog)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    add_debug(p)
    p.add_argument("clone", type=Path, metavar="NEUROPBR", help="a clone of upstream's repository")
    p.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the results go")
    p.add_argument("--runs", type=Path, default=ROOT / "runs" / "upstream", metavar="DIR", help="set and run")
    p.add_argument("--minutes", type=float, default=20.0, metavar="N", help="default %(default)s")
    p.add_argument("--epochs", type=int, metavar="N", help="at most so many; nothing is timed before")
    p.add_argument("--materials", type=int, default=1040, metavar="N", help="default %(default)s")
    p.add_argument("--size", type=int, default=256, metavar="PX", help="default %(default)s, as the recipe's")
    p.add_argument("--batch-size", type=int, default=8, metavar="N", help="default %(default)s")
    p.add_argument("--seed", type=int, default=42, metavar="N", help="default %(default)s")
    p.add_argument(
        "--workers", type=int, default=8, metavar="N", help="that draw the set; default %(default)s"
    )
    add_real(p)
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Draw the set, time some epochs, train, convert, judge."""
    args = parser(prog).parse_args(argv)
    sys.path.insert(0, str(args.clone / "training"))
    without_download()
    cfg = recipe_of(args)
    args.to.mkdir(parents=True, exist_ok=True)
    count = stored_set(args, cfg)
    epochs = args.epochs or epochs_that_fit(args)
    print(f"{epochs} epochs of {count} materials, its validation split among them", flush=True)
    begun = time.monotonic()
    ends = trained(args, epochs)
    took, first = time.monotonic() - begun, ends[0] - begun
    converted = from_upstream(args.runs / "run" / "latest.pth", args.runs / "model.safetensors")
    model = load_generator(converted).to("cuda" if torch.cuda.is_available() else "cpu")
    sets = judged_sets(cfg, args.real, args.samples)
    rows = {where: evaluate(model, *there, as_they_are) for where, there in sets.items()}
    write_figures(
        args.to / "upstream.json",
        {
            "epochs": len(ends),
            "of": epochs,
            "materials": count,
            "seconds": took,
            "first_epoch": first,
            "rows": rows,
        },
    )
    print(
        f"{len(ends)} of {epochs} epochs in {took:.0f} s, of which the first, with its compilers, {first:.0f}"
    )
    titles = ["", *(title for _, title, _ in COLUMNS)]
    cells = [[where, *(f"{row[name]:.{n}f}" for name, _, n in COLUMNS)] for where, row in rows.items()]
    print("\n".join(markdown([titles, *cells])))


def recipe_of(args: argparse.Namespace) -> TrainConfig:
    """Return the recipe whose materials are meant, at one side."""
    data = {"builtin": True, "image_size": args.size}
    return with_fields(load("recipe"), data=data, training={"stages": [], "seed": args.seed})


def stored_set(args: argparse.Namespace, cfg: TrainConfig) -> int:
    """Draw the set in the guide's layout, without what the recipe holds out; return how many materials that leaves."""
    folder = args.runs / "set"
    generate(
        folder, count=args.materials, size=args.size, seed=args.seed, workers=args.workers, curriculum_dirty=False
    )  # fmt: skip
    held = {entry.name for entry in held_out(cfg)[1]}
    names = folder / "input" / "render_metadata.json"
    left = {
        sample: material for sample, material in json.loads(names.read_text()).items() if sample not in held
    }
    (args.runs / "names.json").write_text(json.dumps(left))
    return len(left)


def epochs_that_fit(args: argparse.Namespace) -> int:
    """Return how many epochs fit into `--minutes`, by a run of a few."""
    ends = trained(args, TIMED)
    seconds = ends[-1] - ends[-2]
    print(f"{seconds:.1f} s an epoch", flush=True)
    return max(1, int(args.minutes * 60 / seconds))


def trained(args: argparse.Namespace, epochs: int) -> list[float]:
    """Let upstream's trainer run into `--runs`/run, `--minutes` at most; return when each epoch's training was over."""
    upstream: Any = importlib.import_module("train")
    # It asks `if self.discriminator` of a compiled one, and from torch 2.11 on the answer is that network's length.
    upstream.ConfigurablePatchGANDiscriminator.__len__ = lambda _self: 1
    cfg = upstream.get_default_config()
    cfg.data.image_size = cfg.data.output_size = (args.size, args.size)
    cfg.training.seed, cfg.training.save_best_only = args.seed, True  # latest.pth is written all the same
    cfg.training.use_tensorboard = False
    # Where it validates it saves, which is gigabytes: after the first epoch, and below after the last.
    cfg.training.val_every_n_epochs = epochs
    ends: list[float] = []

    class Timed(upstream.Trainer):
        def train_epoch(self, loader: Any, epoch: int) -> Any:
            found = super().train_epoch(loader, epoch)
            ends.append(time.monotonic())
            over = ends[-1] - ends[0] > args.minutes * 60
            if over or epoch == epochs - 1:
                self.save_checkpoint(epoch)
            if over:
                raise TimeIsOver
            return found

    kept = upstream.Trainer, upstream.get_default_config
    upstream.Trainer, upstream.get_default_config = Timed, lambda: cfg
    try:
        upstream.main(words_of(args, epochs))
    except TimeIsOver:
        pass
    finally:
        upstream.Trainer, upstream.get_default_config = kept
    return ends


def words_of(args: argparse.Namespace, epochs: int) -> argparse.Namespace:
    """Return what upstream's command line would say."""
    folder = args.runs / "set"
    return argparse.Namespace(
        config="default", batch_size=args.batch_size, input_dir=str(folder / "input"), output_dir=str(folder / "output"),
        metadata_path=str(args.runs / "names.json"), use_dirty=False, render_curriculum=0, device=None, epochs=epochs,
        resume=None, checkpoint_dir=str(args.runs / "run"), distributed=False,
    )  # fmt: skip


if __name__ == "__main__":
    run()
