"""`neuropbr train`: the guide's flags, and `--set` for any field."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_fields, named, new_parser, overrides_of
from neuropbr_dist.config import TrainConfig
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.start import Start, steps_of


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr train`."""
    p = new_parser("Train the NeuroPBR GAN: three rendered views in, four PBR maps out.", prog)
    add_fields(p)
    p.add_argument(
        "--resume",
        type=named,
        metavar="auto|PATH",
        help="newest good checkpoint of --checkpoint-dir, or PATH",
    )
    p.add_argument(
        "--init-from",
        type=named,
        metavar="PATH",
        help="start from the weights of a checkpoint, a run's folder or an exported file; all else is new",
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
    return p


def start_of(args: argparse.Namespace) -> Start:
    """Return how the parsed arguments start a run."""
    for name in ("epochs", "steps"):
        if (limit := getattr(args, f"stop_after_{name}")) is not None and limit < 0:
            raise UserError(f"--stop-after-{name} {limit}; allowed: 0 or more")
    return Start(
        overrides=overrides_of(args),
        resume=args.resume,
        init_from=args.init_from,
        overwrite=args.overwrite,
        allow_data_change=args.allow_data_change,
        stop_after_epochs=args.stop_after_epochs,
        stop_after_steps=args.stop_after_steps,
        profile=steps_of(args.profile) if args.profile else None,
    )


def config_of(argv: Sequence[str]) -> TrainConfig:
    """Return the configuration that the arguments of `neuropbr train` mean.

    Raises:
        UserError: a value or a combination that can't be.
    """
    return overrides_of(parser().parse_args(argv)).configuration()


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train, or with `--debug` look at one batch and overfit it."""
    args = parser(prog).parse_args(argv)
    start = start_of(args)
    cfg = start.overrides.configuration()
    if args.debug:
        from neuropbr_dist.training.debug import debug

        debug(cfg, start)
    else:
        from neuropbr_dist.training.run import train

        train(cfg, start)
