"""Runs whose ranks share samples are the runs of ranks that don't: figures, checkpoints, order, from start to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.distributed import ENVIRONMENT, ROOT
from tests.support.staged_runs import staged
from tests.support.train_runs import (
    FOUR,
    SINGLE_PROCESS_SAVES,
    assert_same_metrics,
    resume,
    run,
    state,
    temporary_folder,
    times_seen,
    tiny_words,
)

pytestmark = SINGLE_PROCESS_SAVES

TWO = {"training__sample_ranks": 2}
WITHIN_S = 90


@pytest.fixture(scope="module")
def whole_batch() -> Path:
    """Batches of four, uncut, on one rank."""
    folder = temporary_folder() / "run"
    ended = run(folder, training__batch_size=4, training__log_samples=True, **FOUR)
    assert ended.code == 0, ended.err
    return folder


@pytest.mark.multiprocess
def test_two_ranks_share_every_sample(whole_batch, tmp_path):
    """Validation, its looks and mean maps included."""
    ended = run(tmp_path, "--engine", "fsdp", world=2, training__batch_size=4, **FOUR, **TWO)
    assert ended.code == 0, ended.err
    assert "Batch: 4 = up to 1 x 4 on 1 x 2 ranks, each with 16 rows of every sample" in ended.out
    assert_same_metrics(whole_batch, tmp_path)
    ours, theirs = (sorted((folder / "looks").rglob("*.png")) for folder in (tmp_path, whole_batch))
    assert [path.name for path in ours] == [path.name for path in theirs] and len(ours) > 4
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert (history[0]["world_size"], history[0]["sample_ranks"]) == (2, 2)


# -- from one number of ranks a sample to another ------------------------------------------


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize("engine", ["fsdp", "zero2", "zero3"])
def test_resumed_with_another_number_of_ranks_a_sample(whole_batch, tmp_path, engine):
    """One rank, two that share, two that don't, two pairs, one: each sample once an epoch, in the same order."""
    words = ["--ds", engine] if engine.startswith("zero") else ["--engine", engine]
    ended = run(tmp_path, "--stop-after-steps", "1", training__log_samples=True, **FOUR)
    assert ended.code == 0, ended.err
    for world, sharing, stop in ((2, 2, "2"), (2, 1, "3"), (4, 2, "4")):
        sets = ["--set", f"training.sample_ranks={sharing}", "--stop-after-steps", stop]
        ended = resume(tmp_path, *words, *sets, world=world)
        assert ended.code == 0, ended.err
    assert "training.sample_ranks: 1 -> 2 (command line)" in ended.out
    ended = resume(tmp_path, "--engine", "single", "--set", "training.sample_ranks=1")
    assert ended.code == 0, ended.err
    assert_same_metrics(whole_batch, tmp_path)
    assert times_seen(tmp_path) == times_seen(whole_batch)
    assert [start["world_size"] for start in state(tmp_path)["starts"]] == [1, 2, 2, 4, 1]


def test_more_ranks_a_sample_than_ranks_on_resume_is_one_line(tmp_path):
    ended = run(tmp_path, "--stop-after-steps", "1")
    assert ended.code == 0, ended.err
    ended = resume(tmp_path, "--set", "training.sample_ranks=2")
    said = "training.sample_ranks = 2: it doesn't divide the 1 rank(s); allowed on 1 rank(s): 1"
    assert ended.code == 2 and ended.err == f"error: {said}\n"
    assert resume(tmp_path, "--stop-after-steps", "2").code == 0


STAGES = [
    {"until_epoch": 2, "image_size": 16, "global_batch_size": 4, "batch_size": 2},
    {"until_epoch": 4, "image_size": 32, "global_batch_size": 3, "sample_ranks": 2},
]


@pytest.mark.drill
@pytest.mark.multiprocess
def test_a_later_stage_shares_its_larger_samples(tmp_path):
    fields = {"training__stages": STAGES, "optimizer__eps": 1e-3}
    shared = staged(tmp_path / "shared", "--engine", "fsdp", world=2, **fields)
    assert shared.code == 0, shared.err
    assert "Batch: 4 = up to 1 x 2 on 2 rank(s)" in shared.out
    assert "Batch: 3 = up to 3 x 1 on 1 x 2 ranks, each with 16 rows of every sample" in shared.out
    fields["training__stages"] = [stage | {"sample_ranks": 1} for stage in STAGES]
    assert staged(tmp_path / "alone", **fields).code == 0
    assert_same_metrics(tmp_path / "alone", tmp_path / "shared")


@pytest.mark.drill
@pytest.mark.multiprocess
def test_augmented_and_rendered_samples_are_shared_too(tmp_path):
    """A strip's rows are those of the turned, rendered and rectified sample; paths are dropped alike."""
    common = {
        "data__augment_flips": True, "data__augment_rotations": True, "training__epochs": 2,
        "training__gan_start_epoch": 1, "loss__w_render": 0.3, "model__transformer_depth": 2,
        "model__transformer_drop_path_rate": 0.5, **FOUR,
    }  # fmt: skip
    online = {
        "data__render": "online",
        "data__renders_per_epoch": 1,
        "data__crop": 0.5,
        "data__mixtures": 0.5,
    }
    for name, more in {"stored": {}, "unaligned": {"model__align": "none"}, "online": online}.items():
        alone, shared = (tmp_path / f"{name} {way}" for way in ("alone", "shared"))
        assert run(alone, training__batch_size=4, **common, **more).code == 0
        ended = run(shared, "--engine", "ddp", world=2, training__batch_size=4, **common, **more, **TWO)
        assert ended.code == 0, ended.err
        assert_same_metrics(alone, shared)


# -- a partner that is gone ----------------------------------------------------------------

# A custom loss is the user's own code inside a step: the partner waits in an exchange for what never comes.
KILLED = """
import os, signal
from pathlib import Path
from neuropbr_dist.objectives import register_loss

calls, rank = 0, os.environ.get("RANK", "0")
Path(__file__).with_name("pid-" + rank).write_text(str(os.getpid()))

@register_loss("drill")
def drill(pred, target):
    global calls
    calls += 1
    if {armed} and rank == "1" and calls == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0 * pred.mean((1, 2, 3))
"""


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
def test_a_dead_partner_ends_all_ranks_and_another_number_goes_on(tmp_path, engine):
    """SIGKILL amid the fourth step: both pairs end by themselves, and what goes on is the run that nobody killed."""
    folder, loss = tmp_path / "run", tmp_path / "drill.py"
    fields = {
        "loss__custom": {"drill": 1.0},
        "loss__custom_module": str(loss),
        "training__batch_size": 4,
        **FOUR,
    }
    fields["training__log_samples"] = True
    words = ["--ds", engine] if engine.startswith("zero") else ["--engine", engine]
    loss.write_text(KILLED.format(armed=True))
    settings = tiny_words(**fields, **TWO, training__save_every_n_steps=1)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=4", "launch/train.py"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--checkpoint-dir", str(folder), *words, *settings],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=WITHIN_S, cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    assert done.returncode != 0
    assert re.search(r"exitcode: -9\) local_rank: 1", done.stdout), done.stdout
    codes = re.findall(r"exitcode  : (-?\d+)", done.stdout)
    assert len(codes) == 4 and codes.count("-9") == 1, "torchrun had to kill a rank after its 30 s"
    for rank in range(4):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"pid-{rank}").read_text()), 0)

    loss.write_text(KILLED.format(armed=False))
    trusted = ["--set", f"loss.custom_module={loss}"]
    for world, sharing, stop in ((2, 1, ["--stop-after-steps", "4"]), (2, 2, [])):
        sets = ["--set", f"training.sample_ranks={sharing}", *trusted, *stop]
        ended = resume(folder, *words, *sets, world=world)
        assert ended.code == 0, ended.err
    starts = [(start["world_size"], start["step"]) for start in state(folder)["starts"]]
    assert starts[0] == (4, 0) and starts[1][0] == 2 and starts[1][1] in (2, 3) and starts[2] == (2, 4)
    assert run(tmp_path / "alone", **fields).code == 0
    assert_same_metrics(tmp_path / "alone", folder)
    assert times_seen(folder) == times_seen(tmp_path / "alone")
