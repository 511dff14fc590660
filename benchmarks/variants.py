"""What measurements of variants share: runs of one configuration with other fields, each with several seeds."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.options import fields_of, measurement
from benchmarks.ranks import ROOT
from neuropbr_dist.config import as_one_stage, stages_of
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.data.open import fill_cache, open_source
from neuropbr_dist.errors import UserError

SET_HERE = {
    "training.checkpoint_dir": "--runs names where the runs go",
    "training.seed": "--seeds says them",
}


def variants_parser(
    description: str | None, prog: str | None, *, name: str, config: str, variants: Iterable[str],
    default: Sequence[str], minutes: float,
) -> argparse.ArgumentParser:  # fmt: skip
    """Return a measurement's parser; fields that are named win over a variant's.

    Args:
        name: of the measurement.
        config: of the runs, where none is named.
        default: variants, where none are named.
        minutes: of a run, where none are named.
    """
    p = measurement(description, prog, config)
    p.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the results go")
    p.add_argument("--runs", type=Path, default=ROOT / "runs" / name, metavar="DIR", help="run folders")
    p.add_argument("--variants", nargs="+", choices=list(variants), default=list(default), metavar="NAME",
                   help=f"of {', '.join(variants)}; default {' '.join(default)}")  # fmt: skip
    p.add_argument("--seeds", type=int, nargs="+", default=[42], metavar="N",
                   help="each variant with each; also the key of the materials; default 42")  # fmt: skip
    p.add_argument(
        "--minutes", type=float, default=minutes, metavar="N", help="of a run; default %(default)s"
    )
    p.add_argument(
        "--per-gpu", type=int, default=1, metavar="N", help="runs that share a GPU; needs --epochs"
    )
    add_real(p)
    return p


def add_real(parser: argparse.ArgumentParser) -> None:
    """Add the flags of another set that runs are judged on."""
    parser.add_argument(
        "--real", nargs=2, metavar=("IN", "OUT"), help="a set with cameras.json to judge by as well"
    )
    parser.add_argument(
        "--samples", nargs="+", metavar="NAME", help="those of --real that are judged by themselves, too"
    )


def prepared(args: argparse.Namespace) -> Overrides:
    """Return the fields of all runs, after the folder of the results and the seeds' built-in materials are made.

    Raises:
        UserError: a field that the measurement sets itself, or runs that can't share a GPU.
    """
    fields = fields_of(args, SET_HERE)
    if args.per_gpu > 1 and args.epochs is None:
        raise UserError("--per-gpu needs --epochs: a run's speed depends on its neighbours'")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args.to.mkdir(parents=True, exist_ok=True)
    cfg = fields.configuration()
    for seed in args.seeds:  # first: runs beside each other would all make them
        fill_cache([open_source(as_one_stage(cfg, stage).data, seed) for stage in stages_of(cfg)])
    return fields
