"""`neuropbr doctor`: are the nodes of a run alike and fit for it?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from neuropbr_dist.commands import train
from neuropbr_dist.commands.entry import entry


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr doctor`: it takes the words of the run."""
    p = train.parser(prog)
    p.description = (
        "Compare the nodes that this command runs on (under srun, torchrun, deepspeed), for the run that the "
        "same words of `neuropbr train` would start; exit code 1 if they differ, or aren't fit for it."
    )
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print the table of all ranks; exit code 1 if something is wrong."""
    start = train.start_of(parser(prog).parse_args(argv))
    from neuropbr_dist.training.doctor import doctor

    sys.exit(0 if doctor(start.overrides.configuration()) else 1)
