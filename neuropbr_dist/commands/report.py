"""`neuropbr report`: a run's page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr report`."""
    p = new_parser(
        "Write a run's page: one HTML file with its curves, pictures and history, for any browser.", prog
    )
    p.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run's folder; the page goes into it")
    add_debug(p)
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Write the page, and say where it is."""
    args = parser(prog).parse_args(argv)
    from neuropbr_dist.report import write_page

    path = write_page(args.run_dir)
    print(f"Wrote {path} ({path.stat().st_size / 2**20:.1f} MiB): open it in a browser")
