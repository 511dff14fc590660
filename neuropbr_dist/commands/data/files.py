"""Words of the commands that read a set of PNG files."""

from __future__ import annotations

import argparse

from neuropbr_dist.errors import UserError
from neuropbr_dist.processes import usable_cores


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add the words that name a set of PNG files, and the processes to read it in."""
    parser.add_argument("input_dir", nargs="?", metavar="IN", help="folder with clean/ and dirty/")
    parser.add_argument("output_dir", nargs="?", metavar="OUT", help="folder with one folder a material")
    parser.add_argument(
        "--materials", metavar="DIR", help="a folder of materials without renders, instead of IN OUT"
    )
    parser.add_argument("--metadata", metavar="FILE", help="default IN/render_metadata.json")
    add_workers(parser)


def add_conventions(parser: argparse.ArgumentParser) -> None:
    """Add the words for maps that renders were made of by other conventions; see `materials.conventions`."""
    parser.add_argument(
        "--flip-green",
        action="store_true",
        help="renders are lit as if normals' green pointed down (upstream's)",
    )
    parser.add_argument(
        "--linear-albedo", action="store_true", help="renders take albedo bytes for linear light (upstream's)"
    )


def set_of(args: argparse.Namespace) -> tuple[str | None, str]:
    """Return IN and OUT; for a folder of materials alone None and that.

    Raises:
        UserError: both are named, or neither.
    """
    if args.materials is not None:
        if args.input_dir is not None:
            raise UserError("--materials DIR is a set of its own: leave IN and OUT out")
        return None, args.materials
    if args.output_dir is None:
        raise UserError("IN and OUT are needed, or --materials DIR")
    return args.input_dir, args.output_dir


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the word that says how many processes read; `workers_of` reads it."""
    parser.add_argument("--workers", type=int, metavar="N", help="default: all cores it may use")


def workers_of(args: argparse.Namespace) -> int:
    """Return how many processes read; all cores that this one may use unless said.

    Raises:
        UserError: fewer than one.
    """
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be 1 or more")
    return args.workers or usable_cores()
