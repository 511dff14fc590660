"""`neuropbr data register`: the cameras of a set that has none."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuropbr_dist.commands.data.files import add_workers, workers_of
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser
from neuropbr_dist.errors import UserError


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr data register`."""
    p = new_parser(
        "Find each view's camera by laying it on its material's maps; write IN/cameras.json.", prog
    )
    p.add_argument("input_dir", metavar="IN", help="folder with clean/ and dirty/")
    p.add_argument("output_dir", metavar="OUT", help="folder with one folder a material")
    p.add_argument("--metadata", metavar="FILE", help="default IN/render_metadata.json")
    p.add_argument("--to", type=Path, metavar="FILE", help="default IN/cameras.json")
    p.add_argument(
        "--sheet", type=Path, metavar="FILE", help="contact sheet, JPEG; default beside the cameras"
    )
    p.add_argument("--fov", type=float, default=55.0, metavar="DEGREES",
                   help="field of view across a picture; default %(default)g, 0: not known")  # fmt: skip
    p.add_argument("--prior", choices=("upstream", "free", "auto"), default="auto",
                   help="cameras of upstream's renderer, or any; default: what a few samples show")  # fmt: skip
    p.add_argument("--wrap", action=argparse.BooleanOptionalAction,
                   help="whether the maps repeat on the plane; default: whether most of them tile")  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="also look for cameras that the file has already")
    p.add_argument("--least", type=float, default=0.5, metavar="SHARE",
                   help="exit code 1 if fewer views get a sure camera; default %(default)g")  # fmt: skip
    add_workers(p)
    add_debug(p)
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Register, print the table; exit code 1 where too few views got a sure camera."""
    args = parser(prog).parse_args(argv)
    workers = workers_of(args)
    if args.fov != 0 and not 5 <= args.fov <= 120:
        raise UserError(f"--fov {args.fov:g}: allowed: 5 to 120 degrees, or 0 where it isn't known")
    if not 0 <= args.least <= 1:
        raise UserError(f"--least {args.least:g}: allowed: 0 to 1")
    from neuropbr_dist.data.register import require_opencv

    require_opencv()
    from neuropbr_dist.data.register.run import register

    registration = register(
        args.input_dir, args.output_dir, args.metadata, to=args.to, sheet=args.sheet, prior=args.prior,
        field_of_view=args.fov, wrap=args.wrap, overwrite=args.overwrite, workers=workers,
    )  # fmt: skip
    print(registration)
    if registration.share < args.least:
        print(f"{registration.share:.0%} of the views got a sure camera, fewer than --least {args.least:g}")
        sys.exit(1)
