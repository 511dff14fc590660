"""`launch/benchmark.py`: what can be said of it without a GPU."""

from __future__ import annotations

import subprocess
import sys

from neuropbr_dist.benchmark.cli import parser


def test_without_a_gpu_it_says_so_in_one_line():
    done = subprocess.run(
        [sys.executable, "launch/benchmark.py", "attention", "--tokens", "64"],
        capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: launch/benchmark.py attention needs a CUDA device; there is none\n"


def test_words_of_train_go_through_to_a_step():
    args, words = parser().parse_known_args(["step", "--plans", "low", "--engine", "fsdp", "--set", "a=1"])
    assert args.plans == ["low"] and words == ["--engine", "fsdp", "--set", "a=1"]
