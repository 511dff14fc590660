"""`neuropbr data generate`: built-in materials in the guide's layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr data generate`."""
    p = new_parser("Write built-in materials in the guide's layout.", prog)
    p.add_argument("out", type=Path, help="folder for input/ and output/; an interrupted call goes on")
    p.add_argument("--count", type=int, required=True, metavar="N", help="samples, one material each")
    p.add_argument("--size", type=int, required=True, metavar="S", help="side in pixels")
    p.add_argument("--seed", type=int, default=42, metavar="N", help="default %(default)s")
    p.add_argument("--workers", type=int, default=1, metavar="N", help="default %(default)s")
    p.add_argument("--clean-only", action="store_true", help="no dirty renders")
    add_debug(p)
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Write the set, and say where it is."""
    args = parser(prog).parse_args(argv)
    from neuropbr_dist.data.builtin import generate

    generate(
        args.out, count=args.count, size=args.size, seed=args.seed, workers=args.workers,
        curriculum_dirty=not args.clean_only,
    )  # fmt: skip
    print(f"Wrote {args.count} samples of {args.size} px to {args.out}/input and {args.out}/output")
