"""The command line of `launch/train.py`: the guide's flags, and `--set` for any field."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from neuropbr_dist.config import TrainConfig
from neuropbr_dist.config.overrides import FIELD_FLAGS, INTEGER_FLAGS, Overrides
from neuropbr_dist.config.presets import PRESETS
from neuropbr_dist.training.start import Start, steps_of


def named(text: str) -> str:
    """A flag's value that may not be empty: a shell variable that isn't set would mean this folder, or the default."""
    if not text:
        raise argparse.ArgumentTypeError("empty text")
    return text


def train_parser() -> argparse.ArgumentParser:
    """Every flag of `launch/train.py`."""
    p = argparse.ArgumentParser(
        description="Train the NeuroPBR GAN: three rendered views in, four PBR maps out.", allow_abbrev=False
    )
    p.add_argument(
        "--config",
        type=named,
        help=f"preset ({', '.join(PRESETS)}), .yaml file or .py file with get_config()",
    )
    for flag, name in FIELD_FLAGS.items():
        p.add_argument(flag, metavar="VALUE", help=name)
    for flag, name in INTEGER_FLAGS.items():
        p.add_argument(flag, type=int, metavar="N", help=name)
    p.add_argument("--use-dirty", action="store_true", help="legacy: --render-curriculum 2")
    p.add_argument(
        "--set", action="append", default=[], metavar="PART.FIELD=VALUE", help="any field; repeatable"
    )
    p.add_argument(
        "--resume",
        type=named,
        metavar="auto|PATH",
        help="newest good checkpoint of --checkpoint-dir, or PATH",
    )
    p.add_argument(
        "--overwrite", action="store_true", help="start anew in a folder that holds a run (deletes it)"
    )
    p.add_argument(
        "--allow-data-change", action="store_true", help="resume on another data set or global batch"
    )
    p.add_argument("--stop-after-epochs", type=int, metavar="N", help="save and stop at this epoch's end")
    p.add_argument(
        "--stop-after-steps", type=int, metavar="N", help="save and stop after this many steps in all"
    )
    p.add_argument(
        "--profile", metavar="N-M", help="trace steps N to M on rank 0 into the run's folder, profile/"
    )
    p.add_argument(
        "--debug", action="store_true", help="one device, no launcher: look at one batch, overfit it"
    )
    p.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher
    return p


def overrides_of(args: argparse.Namespace) -> Overrides:
    """Return what the parsed words say of fields."""
    given = {flag: getattr(args, flag.lstrip("-").replace("-", "_")) for flag in FIELD_FLAGS | INTEGER_FLAGS}
    return Overrides(
        config=args.config,
        flags={flag: value for flag, value in given.items() if value is not None},
        use_dirty=args.use_dirty,
        assignments=tuple(args.set),
    )


def start_of(args: argparse.Namespace) -> Start:
    """Return how the parsed words start a run."""
    return Start(
        overrides=overrides_of(args),
        resume=args.resume,
        overwrite=args.overwrite,
        allow_data_change=args.allow_data_change,
        stop_after_epochs=args.stop_after_epochs,
        stop_after_steps=args.stop_after_steps,
        profile=steps_of(args.profile) if args.profile else None,
    )


def config_of(words: Sequence[str]) -> TrainConfig:
    """Return the configuration that words of `launch/train.py` mean.

    Raises:
        UserError: a value or a combination that can't be.
    """
    return overrides_of(train_parser().parse_args(words)).configuration()
