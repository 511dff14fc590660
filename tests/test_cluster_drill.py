"""A rank that fails ends the whole run, within a bounded time and with its own error first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.distributed import ENVIRONMENT, ROOT, free_port
from tests.support.material_files import write_set
from tests.support.tiny import FIELDS, set_words

WITHIN_S = 90

# A custom loss is the user's own code inside a step. Rank 1 fails in it, in the second step or so.
LOSS = """
import os, signal
from pathlib import Path
from neuropbr_dist.errors import UserError
from neuropbr_dist.objectives import register_loss

calls = 0
Path(__file__).with_name("pid-" + os.environ["RANK"]).write_text(str(os.getpid()))

@register_loss("drill")
def drill(pred, target):
    global calls
    calls += 1
    if os.environ["RANK"] == "1" and calls == 4:
        {fault}
    return 0 * pred.mean((1, 2, 3))
"""
FAULTS = {
    "user error": 'raise UserError("no more light in this room")',
    "bug": 'raise ValueError("no more light in this room")',
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
}
SETTINGS = FIELDS | {
    "data.image_size": 16, "training.batch_size": 1, "training.global_batch_size": 2, "training.gan_start_epoch": 0,
    "training.use_tensorboard": False, "loss.custom": {"drill": 1.0},
}  # fmt: skip
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "deepspeed": ["deepspeed.launcher.runner", "--num_accelerators=2"],
}


def launch(folder: Path, launcher: str, fault: str) -> subprocess.CompletedProcess[str]:
    """Two ranks of a real run; `stdout` holds stderr too, in the order of writing."""
    renders, maps = write_set(folder / "set", {f"sample_{i:04d}": f"material_{i}" for i in range(8)})
    (folder / "drill.py").write_text(LOSS.format(fault=FAULTS[fault]))
    command = [sys.executable, "-m", *LAUNCHERS[launcher]]
    if launcher == "deepspeed":
        command += [f"--master_port={free_port()}"]
    command += [
        "launch/train.py", "--config", "demo", "--device", "cpu", "--epochs", "4",
        "--checkpoint-dir", str(folder / "run"), "--input-dir", str(renders), "--output-dir", str(maps),
        "--set", f"loss.custom_module={folder / 'drill.py'}",
        *(["--ds", "ds_configs/zero2.json"] if launcher == "deepspeed" else []),
    ]  # fmt: skip
    command += set_words(SETTINGS)
    return subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=WITHIN_S,
        cwd=ROOT, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip


def assert_gone(folder: Path) -> None:
    """No rank's process is left."""
    pids = [int((folder / f"pid-{rank}").read_text()) for rank in range(2)]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def assert_first(text: str, output: str) -> None:
    """`text` is there, above any traceback of the other rank."""
    assert text in output
    assert "[rank0]" not in output[: output.index(text)], output


@pytest.mark.multiprocess
@pytest.mark.drill
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_users_error_on_one_rank_ends_the_run(tmp_path, launcher):
    done = launch(tmp_path, launcher, "user error")
    assert done.returncode != 0
    assert_first("\nrank 1: error: no more light in this room\n", done.stdout)
    assert_gone(tmp_path)


@pytest.mark.multiprocess
@pytest.mark.drill
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_rank_ends_the_run(tmp_path, launcher):
    done = launch(tmp_path, launcher, "killed")
    assert done.returncode != 0
    killed = r"exitcode: -9\) local_rank: 1" if launcher == "torchrun" else r"--local_rank=1.* = -9"
    assert re.search(killed, done.stdout), done.stdout
    assert_gone(tmp_path)


@pytest.mark.drill
@pytest.mark.multiprocess
def test_a_bug_on_one_rank_ends_the_run_with_its_traceback(tmp_path):
    done = launch(tmp_path, "torchrun", "bug")
    assert done.returncode != 0
    assert_first("ValueError: no more light in this room", done.stdout)
    assert_gone(tmp_path)
