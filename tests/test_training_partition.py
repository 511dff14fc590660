"""A run depends on its global batch only, not on how that is cut into ranks and micro-batches."""

import pytest

from tests.support.train_runs import (
    FOUR,
    SINGLE_PROCESS_SAVES,
    assert_same_metrics,
    command,
    metrics,
    run,
    state,
    tensors,
)

pytestmark = SINGLE_PROCESS_SAVES

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def whole_batch(tmp_path_factory):
    """Batches of four, uncut."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(folder, training__batch_size=4, **FOUR).code == 0
    return folder


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_accumulation(whole_batch, tmp_path, micro):
    assert run(tmp_path, training__batch_size=micro, **FOUR).code == 0
    assert_same_metrics(whole_batch, tmp_path)


def test_loader_processes(whole_batch, tmp_path):
    assert run(tmp_path, training__batch_size=4, data__num_workers=2, **FOUR).code == 0
    assert metrics(tmp_path) == metrics(whole_batch)


@pytest.mark.multiprocess
@pytest.mark.parametrize("world, micro, engine", [(2, 2, "fsdp"), (2, 1, "ddp"), (3, 2, "fsdp")])
def test_ranks(whole_batch, tmp_path, world, micro, engine):
    """Of three ranks two are short: their filler counts nowhere."""
    ended = run(tmp_path, "--engine", engine, world=world, training__batch_size=micro, **FOUR)
    assert ended.code == 0, ended.err
    assert_same_metrics(whole_batch, tmp_path)


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["zero1", "zero2_offload", "zero3", "zero3_offload"])
def test_shipped_deepspeed_files(whole_batch, tmp_path, name):
    ended = run(tmp_path, "--ds", f"ds_configs/{name}.json", world=2, **FOUR)
    assert ended.code == 0, ended.err[-3000:]
    assert_same_metrics(whole_batch, tmp_path)


@pytest.mark.multiprocess
def test_resumed_at_another_world_size_and_engine(whole_batch, tmp_path):
    run(tmp_path, "--stop-after-steps", "2", training__batch_size=1, **FOUR)
    again = ["--resume", "auto", "--checkpoint-dir", tmp_path]
    ended = command(*again, "--engine", "fsdp", "--stop-after-steps", "4", world=2)
    assert ended.code == 0, ended.err
    assert "training.engine: auto -> fsdp (command line)" in ended.out
    assert command(*again, "--engine", "single").code == 0
    assert_same_metrics(whole_batch, tmp_path)
    assert [(start["world_size"], start["engine"]) for start in state(tmp_path)["starts"]] == [
        (1, "single"), (2, "fsdp"), (1, "single"),
    ]  # fmt: skip


@pytest.mark.drill
@pytest.mark.parametrize(
    "changed",
    [
        {"training.memory": "low"},
        {"training.activation_checkpointing": "full"},
        {"training.batch_size": 1},
        {"data.num_workers": 2},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_resumed_with_another_way_of_computing_the_same(whole_batch, tmp_path, changed):
    run(tmp_path, "--stop-after-steps", "2", training__batch_size=4, **FOUR)
    sets = [word for name, value in changed.items() for word in ("--set", f"{name}={value}")]
    ended = command("--resume", "auto", "--checkpoint-dir", tmp_path, *sets)
    assert ended.code == 0, ended.err
    assert f"  {next(iter(changed))}: " in ended.out and "(command line)" in ended.out
    assert_same_metrics(whole_batch, tmp_path)


@pytest.mark.multiprocess
def test_fsdp_and_ddp_on_one_rank_and_two_engines(whole_batch, tmp_path):
    ended = run(tmp_path, "--engine", "fsdp", "--engine-discriminator", "ddp", training__batch_size=4, **FOUR)
    assert ended.code == 0, ended.err
    assert_same_metrics(whole_batch, tmp_path)


def test_a_saved_deepspeed_run_resumes_by_itself(tmp_path):
    """The engine is in the checkpoint, not on the command line."""
    ended = run(tmp_path, "--ds", "ds_configs/zero2.json", "--stop-after-steps", "3")
    assert ended.code == 0, ended.err
    ended = command("--resume", "auto", "--checkpoint-dir", tmp_path, "--stop-after-steps", "6")
    assert ended.code == 0, ended.err
    assert "Engine: deepspeed on 1 x cpu" in ended.out
    assert state(tmp_path)["step"] == 6
    # …and the same state goes on elsewhere.
    ended = command("--resume", "auto", "--checkpoint-dir", tmp_path, "--engine", "single")
    assert ended.code == 0, ended.err
    assert "Engine: single" in ended.out and tensors(tmp_path)
