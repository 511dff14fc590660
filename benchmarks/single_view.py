"""`launch/train.py` of a network that is shown one view of each sample, the first; the others count as missing.

The yardstick for what three views bring: `launch/benchmark.py quality --variants single_view` starts it. Training and
validation take their cameras from `judging.OneView`; no field of a run says this, since it serves to compare alone.
"""

import sys
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.judging import OneView
from neuropbr_dist.commands.train import run
from neuropbr_dist.training import loop, validation


def main() -> None:
    """Train by the words of the command line."""
    with patch.object(loop, "Alignment", OneView), patch.object(validation, "Alignment", OneView):
        run()


if __name__ == "__main__":
    main()
