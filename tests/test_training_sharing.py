"""Runs whose ranks share samples are the runs of ranks that don't: figures, checkpoints, order, from start to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.train_runs import (
    SETTINGS,
    SINGLE_PROCESS_SAVES,
    command,
    resume,
    run,
    state,
    temporary_folder,
    times_seen,
)
from tests.test_training_partition import FOUR, assert_same_metrics, differences

pytestmark = SINGLE_PROCESS_SAVES

TWO = {"training__sample_ranks": 2}


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
