"""`make demo`: train on built-in materials, look at a held-out one, say how good it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from neuropbr_dist.cluster import detect
from neuropbr_dist.config import from_yaml
from neuropbr_dist.errors import UserError
from neuropbr_dist.monitor.run_logs import METRICS, run_log
from neuropbr_dist.training.baseline import mean_maps_metrics
from neuropbr_dist.training.data import open_samples

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "demo_run"
CPU_PROCESSES = 2


def demo() -> None:
    """The same commands that a person would type, one after another."""
    gpus = torch.cuda.device_count()
    where = ["--num_gpus", str(gpus)] if gpus else ["--num_accelerators", str(CPU_PROCESSES)]
    train = ["--ds", "ds_configs/zero2.json", "--config", "demo", "--overwrite"]
    call([sys.executable, tool("deepspeed"), *where, "launch/train.py", *train])
    call(
        [
            sys.executable, "launch/infer.py", "--checkpoint", str(RUN), "--split", "val",
            "--sample-idx", "0", "--out-dir", str(RUN / "sample"),
        ]
    )  # fmt: skip
    report()


def tool(name: str) -> str:
    """A console script of this Python environment."""
    return str(Path(sys.executable).parent / name)


def call(command: list[str]) -> None:
    """Show a command and run it in the project's folder; raises UserError when it fails."""
    print(
        "$ " + " ".join(Path(c).name if c in (sys.executable, command[1]) else c for c in command), flush=True
    )
    env = {"OMP_NUM_THREADS": "1"} | dict(os.environ)
    code = subprocess.run(command, cwd=ROOT, env=env).returncode
    if code != 0:
        raise UserError(f"{command[1]} ended with exit code {code}; its message stands above")


def report() -> None:
    """Validation L1 against its value before training and against the training set's mean maps."""
    cfg = from_yaml((RUN / "config.yaml").read_text(), str(RUN / "config.yaml"))
    found = [line for line in run_log(RUN, METRICS).read() if "val/l1" in line]
    first, last = found[0]["val/l1"], found[-1]["val/l1"]
    mean = mean_maps_metrics(cfg, open_samples(cfg, detect(), lambda _text: None))["l1"]
    print(f"\nValidation L1 (mean over the four maps, {found[-1]['step']} steps):")
    print(f"  before training            {first:.4f}")
    print(f"  training set's mean maps   {mean:.4f}")
    print(f"  after training             {last:.4f}   {1 - last / first:.0%} below the start, "
          f"{1 - last / mean:.0%} below the mean maps")  # fmt: skip
    for name in ("psnr", "ssim", "normal_angle_mean"):
        print(f"  {name:<26} {found[0][f'val/{name}']:.3f} -> {found[-1][f'val/{name}']:.3f}")
    print(f"\nPicture (views, predicted maps, true maps, errors): {RUN / 'sample' / 'picture.png'}")
    print(f"TensorBoard: {tool('tensorboard')} --logdir {RUN / 'logs'}")
