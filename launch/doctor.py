"""Compare the nodes that a run would be on. Started by srun, torchrun or deepspeed on all of them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from neuropbr_dist.commands.doctor import run

if __name__ == "__main__":
    run()
