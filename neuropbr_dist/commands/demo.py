"""`neuropbr demo`, or `make demo`: train on built-in materials, look at a held-out one, say how good it is."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import neuropbr_dist
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import new_parser
from neuropbr_dist.config import from_yaml
from neuropbr_dist.errors import UserError

RUN = Path("demo_run")  # as the demo preset has it
CPU_PROCESSES = 2
BIN = Path(sys.executable).parent
HERE = Path(neuropbr_dist.__file__).parents[1]
"""Folder that Python's path needs for this package, installed or not."""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr demo`, which takes no words."""
    return new_parser(
        f"Train, infer and report on built-in materials, into {RUN}/. A former {RUN} is overwritten.", prog
    )


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the same commands that a person would type, one after another."""
    parser(prog).parse_args(argv)
    import torch

    gpus = torch.cuda.device_count()
    where = ["--num_gpus", str(gpus)] if gpus else ["--num_accelerators", str(CPU_PROCESSES)]
    train = ["train", "--ds", "zero2", "--config", "demo", "--overwrite"]
    call(["deepspeed", *where, "--module", "neuropbr_dist", *train], sys.executable, str(BIN / "deepspeed"))
    sample = ["--split", "val", "--sample-idx", "0", "--out-dir", str(RUN / "sample")]
    call(["python", "-m", "neuropbr_dist", "infer", "--checkpoint", str(RUN), *sample], sys.executable)
    print_losses()


def call(command: list[str], *program: str) -> None:
    """Show a command and run it; `program` stands for its first word.

    Raises:
        UserError: it failed.
    """
    print("$ " + " ".join(command), flush=True)
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"OMP_NUM_THREADS": "1"} | dict(os.environ) | {"PYTHONPATH": path}
    code = subprocess.run([*program, *command[1:]], env=env).returncode
    if code != 0:
        raise UserError(f"{command[0]} ended with exit code {code}; its message stands above")


def print_losses() -> None:
    """Print validation L1 against its value before training and against the training set's mean maps."""
    from neuropbr_dist.data.open import fill_cache, open_samples
    from neuropbr_dist.monitor.run_logs import METRICS, run_log
    from neuropbr_dist.training.baseline import mean_maps_metrics

    cfg = from_yaml((RUN / "config.yaml").read_text(), str(RUN / "config.yaml"))
    found = [line for line in run_log(RUN, METRICS).read() if "val/l1" in line]
    first, last = found[0]["val/l1"], found[-1]["val/l1"]
    samples = open_samples(cfg)
    fill_cache([samples.source])
    mean = mean_maps_metrics(cfg, samples)["l1"]
    print(f"\nValidation L1 (mean over the four maps, {found[-1]['step']} steps):")
    print(f"  before training            {first:.4f}")
    print(f"  training set's mean maps   {mean:.4f}")
    print(f"  after training             {last:.4f}   {1 - last / first:.0%} below the start, "
          f"{1 - last / mean:.0%} below the mean maps")  # fmt: skip
    for name in ("psnr", "ssim", "normal_angle_mean"):
        print(f"  {name:<26} {found[0][f'val/{name}']:.3f} -> {found[-1][f'val/{name}']:.3f}")
    print(f"\nPicture (views, predicted maps, true maps, errors): {RUN / 'sample' / 'picture.png'}")
    print(f"TensorBoard: {BIN / 'tensorboard'} --logdir {RUN / 'logs'}")
