"""SIGKILL in the middle of a save: whatever save was complete before is found, whole."""

import random
import time
from pathlib import Path

import pytest
import torch

from neuropbr_dist.checkpoint import Fragment, RunLock, find, open_newest, retain, save, step_name
from tests.support.distributed import fork_server
from tests.support.said import said

pytestmark = [pytest.mark.multiprocess, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]

KILLS = 10
TENSORS, ELEMENTS = 8, 2**18


def save_for_ever(folder: Path, step: int, pipe) -> None:
    torch.set_num_threads(1)
    with RunLock(folder):
        retain(folder, 2)
        while True:
            step += 1
            content = [Fragment.whole(f"w{index}", torch.full((ELEMENTS,), step)) for index in range(TENSORS)]
            save(folder, step_name(step), content, {"step": step}, "")
            retain(folder, 2)
            pipe.send(step)


def test_kill_at_random_moments(tmp_path):
    context, delays = fork_server(), random.Random(0)
    last_done, in_the_middle = 0, 0
    for _ in range(KILLS):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=save_for_ever, args=(tmp_path, last_done, theirs))
        process.start()
        theirs.close()
        last_done = ours.recv()  # it has saved once in this life
        while not list(tmp_path.glob("step_*.tmp-*")) and process.is_alive():
            pass
        time.sleep(delays.uniform(0, 0.05))
        process.kill()
        process.join()
        in_the_middle += bool(list(tmp_path.glob("*.tmp-*")))
        while ours.poll():
            try:
                last_done = ours.recv()
            except EOFError:
                break

        with said() as complaints, open_newest(tmp_path) as checkpoint:
            step = checkpoint.state["step"]
            assert step >= last_done
            content = checkpoint.read()
        assert complaints == []
        assert len(content) == TENSORS
        assert all(torch.equal(tensor, torch.full((ELEMENTS,), step)) for tensor in content.values())
        last_done = step
    assert in_the_middle > 0
    retain(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {
        "latest",
        "run.lock",
        *(p.name for p in find(tmp_path)),
    }
    assert (tmp_path / "latest").resolve() == find(tmp_path)[0]
