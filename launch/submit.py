"""Submit a training run through submitit: Slurm, local processes, or this process."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from neuropbr_dist.commands.submit import run

if __name__ == "__main__":
    run()
