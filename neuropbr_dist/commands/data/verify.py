"""`neuropbr data verify`: every fault of a set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuropbr_dist.commands.data.files import add_set, set_of, workers_of
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr data verify`."""
    p = new_parser("Decode every file of a set, list every fault; exit code 1 if any.", prog)
    add_set(p)
    p.add_argument("--fix-list", type=Path, metavar="FILE", help="write faulty samples' names to it")
    p.add_argument("--resume", type=Path, metavar="FILE", help="state file of what is checked already")
    p.add_argument(
        "--no-cameras", action="store_true", help="don't lay views on their maps by the set's cameras"
    )
    add_debug(p)
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print what was found; exit code 1 where the set has faults."""
    args = parser(prog).parse_args(argv)
    workers, folders = workers_of(args), set_of(args)
    from neuropbr_dist.data.files.verify import verify

    verification = verify(
        *folders, args.metadata,
        workers=workers, fix_list=args.fix_list, resume=args.resume, cameras=not args.no_cameras,
    )  # fmt: skip
    print(verification)
    if not verification.clean:
        sys.exit(1)
