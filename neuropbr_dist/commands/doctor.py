"""`neuropbr doctor`: are the nodes of a run alike and fit for it?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, add_fields, new_parser, overrides_of


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr doctor`: it takes the fields of the run."""
    p = new_parser(
        "Compare the nodes that this command runs on (under srun, torchrun, deepspeed), for the run that the same "
        "words of neuropbr train would start; exit code 1 if they differ, or aren't fit for it.",
        prog,
    )
    add_fields(p)
    add_debug(p)
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print the table of all ranks; exit code 1 if something is wrong."""
    cfg = overrides_of(parser(prog).parse_args(argv)).configuration()
    from neuropbr_dist.training.doctor import doctor

    sys.exit(0 if doctor(cfg) else 1)
