"""The restart loop of docs/checkpoints.md, as it stands there: a rank dies, the run goes on at another size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import train_runs
from tests.support.distributed import ENVIRONMENT, ROOT, free_port
from tests.support.doc_commands import examples

pytestmark = [pytest.mark.multiprocess, pytest.mark.drill]
WITHIN_S = 200
# The user's own code inside a step: rank 1 of two dies in it.
LOSS = """
import os, signal
from pathlib import Path
from neuropbr_dist.objectives import register_loss

calls = 0

@register_loss("mortal")
def mortal(pred, target):
    global calls
    calls += 1
    if os.environ["RANK"] == "1" and calls == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0 * pred.mean((1, 2, 3))
"""


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def loop(folder: Path) -> str:
    """The documented lines; the run's folder is ours."""
    (text,) = (
        example.text
        for example in examples(ROOT / "docs" / "checkpoints.md")
        if example.text.startswith("# restart-deepspeed")
    )
    return text.replace("run=checkpoints/long", f"run={folder}/run")


def restart(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The loop in a folder of its own, where two slots are free at first, then one."""
    for name in ("launch", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin").mkdir()
    runner = f'exec {sys.executable} -m deepspeed.launcher.runner --master_port={free_port()} "$@"'
    program(folder / "bin" / "deepspeed", runner)
    program(
        folder / "available",
        '[ -e once ] && echo "localhost slots=1" || echo "localhost slots=2"; touch once',
    )
    env = {**os.environ, **ENVIRONMENT, "PATH": f"{folder}/bin:{os.environ['PATH']}", "PAUSE": "0"}
    # A host of a file is asked for over ssh, even if it is this one.
    program(folder / "bin" / "ssh", "echo 127.0.0.1")
    return subprocess.run(
        ["bash", "-c", loop(folder), "loop", *words],
        cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=WITHIN_S,
    )  # fmt: skip


def test_goes_on_at_another_size(tmp_path):
    (tmp_path / "mortal.py").write_text(LOSS)
    words = [
        "--set", f"loss.custom_module={tmp_path}/mortal.py", "--set", "loss.custom={mortal: 1.0}",
        *train_runs.tiny_words(training__global_batch_size=4, training__save_every_n_steps=1, training__epochs=8),
    ]  # fmt: skip
    done = restart(tmp_path, *words)
    assert done.returncode == 0, done.stdout
    state = train_runs.state(tmp_path / "run")
    first, second = state["starts"]
    assert (first["world_size"], second["world_size"]) == (2, 1)
    assert first["step"] == 0 < second["step"] < state["step"] == 10
    assert state["cursor"] == 40


def test_a_wrong_request_ends_the_loop(tmp_path):
    done = restart(tmp_path, "--set", "model.nope=1")
    assert done.returncode == 2, done.stdout
    assert done.stdout.count("error: --set: unknown key 'model.nope'") >= 1
