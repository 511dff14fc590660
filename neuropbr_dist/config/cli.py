"""The command line of `launch/train.py`: the guide's flags, and `--set` for any field."""

from __future__ import annotations

import argparse

from neuropbr_dist.config.check import fold_legacy, resolve
from neuropbr_dist.config.load import load
from neuropbr_dist.config.presets import PRESETS
from neuropbr_dist.config.schema import TrainConfig
from neuropbr_dist.config.values import set_field, set_text
from neuropbr_dist.errors import UserError

# flag -> field; the value's type is the field's.
FIELD_FLAGS = {
    "--input-dir": "data.input_dir",
    "--output-dir": "data.output_dir",
    "--data": "data.packed_dir",
    "--device": "training.device",
    "--checkpoint-dir": "training.checkpoint_dir",
    "--engine": "training.engine",
    "--engine-discriminator": "training.engine_discriminator",
    "--ds": "training.ds_config",
    "--ds-discriminator": "training.ds_config_discriminator",
    "--shard": "training.shard",
    "--compile": "training.compile",
}
INTEGER_FLAGS = {
    "--render-curriculum": "data.render_curriculum",
    "--batch-size": "training.batch_size",
    "--epochs": "training.epochs",
}


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


def apply_flags(cfg: TrainConfig, args: argparse.Namespace) -> None:
    """Command-line values into `cfg`: flags first, then `--set` in order."""
    forget_other_data(cfg, args)
    for flag, name in (FIELD_FLAGS | INTEGER_FLAGS).items():
        value = getattr(args, flag.lstrip("-").replace("-", "_"))
        if value is not None:
            set_field(cfg, name, value, flag)
    if args.use_dirty:
        if args.render_curriculum not in (None, 2):
            raise UserError(
                f"--use-dirty means --render-curriculum 2, but --render-curriculum {args.render_curriculum} "
                "is given too; leave one out"
            )
        cfg.data.render_curriculum = 2
    for assignment in args.set:
        set_text(cfg, assignment)


def forget_other_data(cfg: TrainConfig, args: argparse.Namespace) -> None:
    """Data named on the command line take the place of what a file, or a saved run, names in the other way."""
    if args.data is not None:
        cfg.data.input_dir = cfg.data.output_dir = cfg.data.metadata_path = None
    elif args.input_dir is not None:
        cfg.data.packed_dir = None


def config_from(args: argparse.Namespace) -> TrainConfig:
    """Preset or file, then flags, resolved and checked."""
    cfg = load(args.config or "default")
    fold_legacy(cfg)  # before the flags, which win
    apply_flags(cfg, args)
    return resolve(cfg)
