"""Runs that lose their processes and go on with more or fewer: killed, restarted, joined."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.drills.kill import WAIT_S, drill, newest_step, wait_until
from tests.support.distributed import ENVIRONMENT, ROOT, free_port
from tests.support.train_runs import SETTINGS, Launch, logged_samples, state, times_seen

pytestmark = [pytest.mark.multiprocess, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]

GLOBAL_BATCH = 8
BUILTIN = SETTINGS | {
    "data.image_size": 32,
    "data.builtin_count": 12,
    "training.global_batch_size": GLOBAL_BATCH,
    "training.val_every_n_epochs": 100,
    "training.save_every_n_epochs": 100_000,
    "training.log_samples": True,
}
"""Eleven training samples in batches of eight: a step in two straddles epochs."""
RENDERED = {
    "data.render": "online", "data.builtin_count": 5, "data.renders_per_epoch": 3, "data.image_size": 16,
    "data.mixtures": 0.4, "data.crop": 0.3, "model.use_gan": False,
}  # fmt: skip
"""Four materials to train on, each three times an epoch: twelve samples in batches of eight."""


def words(folder: Path, data: dict[str, Any] | None = None, **settings: Any) -> list[str]:
    chosen = BUILTIN | {"data.builtin_cache": str(folder.parent / "cache")} | (data or {})
    chosen |= {f"training.{name}": value for name, value in settings.items()}
    sets = [word for name, value in chosen.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    return ["--resume", "auto", "--checkpoint-dir", str(folder), "--device", "cpu", *sets]


@pytest.mark.drill
@pytest.mark.parametrize("data, samples", [({}, 11), (RENDERED, 12)], ids=["stored", "rendered"])
def test_each_sample_once_an_epoch_whatever_the_world(tmp_path, data, samples):
    """Killed amid epochs at 4, 2, 3 and 1 ranks; steps after the last save are done again."""
    folder, epochs, lost = tmp_path / "run", 15, []
    settings = {"epochs": epochs, "save_every_n_steps": 3}
    for life, world in enumerate((4, 2, 3, 1), 1):
        launch = Launch(words(folder, data, **settings), world, {})
        wait_until(launch, lambda life=life: len(logged_samples(folder)) >= 4 * life)
        for process in launch.processes:
            process.kill()
        launch.wait()
        lost.append(len(logged_samples(folder)) - newest_step(folder))
    ended = Launch(words(folder, data, **settings), 4, {}).wait()
    assert ended.code == 0, ended.err
    assert max(lost) > 0
    assert [start["world_size"] for start in state(folder)["starts"]] == [4, 2, 3, 1, 4]
    seen = times_seen(folder)
    assert list(seen) == [str(epoch) for epoch in range(1, epochs + 1)]
    assert len(seen["1"]) == samples and set(seen["1"].values()) == {1}
    assert all(counts == seen["1"] for counts in seen.values())


@pytest.mark.drill
@pytest.mark.parametrize("engine, seed", [("fsdp", 2), ("zero2", 0)])
def test_killed_at_random_moments(tmp_path, engine, seed):
    """More of it: `python -m tests.drills.kill --kills 50`."""
    outcome = drill(tmp_path, kills=5, world=2, engine=engine, seed=seed)
    assert outcome.kills == 5


# -- torchrun with one or two nodes ----------------------------------------------------------


@pytest.fixture
def agent() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts torchrun agents of one job, each with a worker; they are ended afterwards."""
    port, started = free_port(), []
    # Without the first, a restarted job now and then never meets again; without the timeout
    # every meeting waits for 30 s.
    env = os.environ | ENVIRONMENT | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

    def start(arguments: list[str], *, host: bool) -> subprocess.Popen:
        command = [
            sys.executable, "-m", "torch.distributed.run",
            "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3",
            "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=job",
            f"--rdzv-conf=last_call_timeout=5,is_host={int(host)}",
            "launch/train.py", *arguments,
        ]  # fmt: skip
        started.append(subprocess.Popen(command, cwd=ROOT, env=env))
        return started[-1]

    yield start
    for process in started:
        kill_tree(process)


def kill_tree(agent: subprocess.Popen) -> None:
    """SIGKILL to an agent and its worker at once, as when a node is lost."""
    if agent.poll() is None:
        for process in [*psutil.Process(agent.pid).children(recursive=True), psutil.Process(agent.pid)]:
            process.kill()
        agent.wait()


def progress_at(folder: Path, world: int, step: int) -> dict[str, Any]:
    """Wait until a run at this world size has saved this step or a later one; its state."""
    end, path = time.monotonic() + WAIT_S, folder / "latest" / "state.json"
    while time.monotonic() < end:
        found = json.loads(path.read_text()) if path.exists() else {"starts": [{"world_size": 0}], "step": 0}
        if found["starts"][-1]["world_size"] == world and found["step"] >= step:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no step {step} at world size {world}; the last: {found}")


@pytest.mark.drill
def test_a_node_is_lost_and_comes_back(tmp_path, agent):
    folder = tmp_path / "run"
    arguments = words(folder, epochs=100_000, save_every_n_steps=1, keep_latest=1000)
    first, second = agent(arguments, host=True), agent(arguments, host=False)
    two = progress_at(folder, world=2, step=3)
    kill_tree(second)
    one = progress_at(folder, world=1, step=two["step"] + 3)
    agent(arguments, host=False)
    back = progress_at(folder, world=2, step=one["step"] + 3)
    assert first.poll() is None
    for found in (two, one, back):
        assert found["global_batch"] == GLOBAL_BATCH
        assert found["cursor"] == found["step"] * GLOBAL_BATCH
    starts = [start["step"] for start in back["starts"]]
    assert starts == sorted(starts) and two["step"] <= starts[-2] < starts[-1]
    seen = times_seen(folder, back["step"])
    assert all(set(counts.values()) == {1} for counts in seen.values())
