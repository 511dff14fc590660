"""Generate, verify or pack a data set."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from neuropbr_dist.commands.data import run

if __name__ == "__main__":
    run()
