"""Predict the PBR maps of a data-set sample or of three renders with a trained generator."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from neuropbr_dist.commands.infer import run

if __name__ == "__main__":
    run()
