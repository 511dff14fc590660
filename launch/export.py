"""Export, consolidate or check checkpoints; convert upstream's."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from neuropbr_dist.commands.export import run

if __name__ == "__main__":
    run()
