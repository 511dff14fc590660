"""The moving average of the weights: the recurrence itself, on every engine, and its way through a run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from neuropbr_dist.commands.export import run as export
from neuropbr_dist.inference import load_generator
from neuropbr_dist.training.ema import WeightAverage, decay_at
from neuropbr_dist.training.step import gan_step
from tests.support.checkpoint_matrix import Case, forward, networks
from tests.support.distributed import run as run_ranks
from tests.support.parity import Poisoned, Row, put_together, rank_batch, whole_state
from tests.support.train_runs import SINGLE_PROCESS_SAVES, assert_same_run, half_run, resume, run, tensors

pytestmark = SINGLE_PROCESS_SAVES
DECAY = 0.7
FIRST_STEP = 3
"""Of what `follow` makes: the first decays are still below `DECAY`."""
CASE = Case(steps=4, ema_decay=DECAY)
ROWS = [
    Row(engine="single", world=1),
    Row(engine="ddp"),
    Row(engine="fsdp"),
    Row(engine="fsdp", offload=True),
    Row(engine="fsdp", world=4, shard="node"),
    *(Row(engine="deepspeed", stage=stage) for stage in range(4)),
    Row(engine="deepspeed", stage=2, offload=True),
    Row(engine="deepspeed", stage=3, offload=True),
    Row(engine="deepspeed", stage=3, persist=10_000),
]


# -- on every engine -------------------------------------------------------------------------


def follow(case: Case, row: Row, faulty_step: int = -1) -> dict[str, Any]:
    """Train; on rank 0 the generator's weights after each step, the average at the end, and outputs."""
    nets = networks(case, row)
    g, d = nets["generator"], nets["discriminator"]
    ema, found = WeightAverage(g, DECAY), {"weights": [weights(g, d)], "finite": []}
    for step in range(case.steps):
        objective = Poisoned(case, "generator" if step == faulty_step else "")
        result = gan_step(g, d, rank_batch(case, row, step), objective)
        ema.update(result.generator, 1 - decay_at(FIRST_STEP + step, DECAY))
        found["finite"].append(bool(result.generator.finite))
        found["weights"].append(weights(g, d))
    found["average"] = put_together((p.name, p.data, p.start, p.shape) for p in ema.fragments())
    found["output"], before = forward(case, nets)["generator"], whole_state(g, d, buffers=True)
    with ema.swapped_in():
        found["output of average"] = forward(case, nets)["generator"]
    found["unchanged"] = same(before, whole_state(g, d, buffers=True))
    found["same output"] = torch.equal(forward(case, nets)["generator"], found["output"])
    found["pieces"] = sum(average.numel() for average in ema.average)
    now = [piece.data for piece in g.fragments() if piece.name.startswith("param/")]
    found["masters lie there still"] = [m.data_ptr() for m in g.masters()] == [m.data_ptr() for m in now]
    return found


def weights(g: Any, d: Any) -> dict[str, Tensor]:
    prefix = "generator/param/"
    return {name.removeprefix(prefix): t for name, t in whole_state(g, d).items() if name.startswith(prefix)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def on(row: Row, case: Case, **arguments: Any) -> list[dict[str, Any]]:
    if row.world == 1:
        return [follow(case=case, row=row, **arguments)]
    return run_ranks(row.world, f"{__name__}:follow", case=case, row=row, **arguments)


def recurrence(history: list[dict[str, Tensor]], steps: Sequence[int]) -> dict[str, Tensor]:
    """In double precision, over whole tensors; `steps` are those that made the weights after the first."""
    average = dict(history[0])
    for step, now in zip(steps, history[1:], strict=True):
        decay = min(DECAY, (1 + step) / (4 + step))
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
    return average


def test_early_in_a_run_the_average_forgets_what_the_run_began_with():
    def left(steps: int, decay: float) -> float:
        return math.prod(decay_at(step, decay) for step in range(1, steps + 1))

    assert left(100, 0.999) < 1e-4 < 0.9 < 0.999**100
    assert decay_at(2, 0.999) == 0.5 and decay_at(2_995, 0.999) < 0.999 == decay_at(2_996, 0.999)
    assert decay_at(1, 0.3) == 0.3


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_average_is_the_recurrence(row):
    ranks = on(row, CASE)
    found = ranks[0]
    expected = recurrence(found["weights"], range(FIRST_STEP, FIRST_STEP + CASE.steps))
    assert len(expected) > 20
    for name, value in expected.items():
        moved = (found["weights"][-1][name] - found["weights"][0][name]).abs().max()
        assert moved > 1e-4  # or the bound below says nothing
        assert (found["average"][f"ema/{name}"] - value).abs().max() <= 1e-6, name
    assert all(
        rank["unchanged"] and rank["same output"] and rank["masters lie there still"] for rank in ranks
    )
    assert not torch.equal(found["output of average"], found["output"])
    whole = sum(value.numel() for value in expected.values())
    sharded = row.engine in ("fsdp", "deepspeed") and not (row.engine == "deepspeed" and row.stage == 0)
    parts = 2 if sharded else 1
    assert all(rank["pieces"] <= whole / parts * 1.1 for rank in ranks)  # sharded like the generator


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "row",
    [
        Row(engine="single", world=1),
        Row(engine="fsdp"),
        *(Row(engine="deepspeed", stage=s) for s in range(4)),
    ],
    ids=str,
)
def test_a_skipped_step_leaves_it_alone(row):
    found = on(row, CASE, faulty_step=2)[0]
    assert found["finite"] == [True, True, False, True]
    kept = [state for i, state in enumerate(found["weights"]) if i != 3]  # what the bad step left
    for name, value in recurrence(kept, [FIRST_STEP, FIRST_STEP + 1, FIRST_STEP + 3]).items():
        assert math.isfinite(value.sum()) and (found["average"][f"ema/{name}"] - value).abs().max() <= 1e-6


@pytest.mark.multiprocess
@pytest.mark.drill
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_low_precision_copies_follow_the_swap(stage):
    ranks = on(Row(engine="deepspeed", stage=stage), Case(steps=4, ema_decay=DECAY, bf16=True))
    assert all(
        rank["unchanged"] and rank["same output"] and rank["masters lie there still"] for rank in ranks
    )
    assert not torch.equal(ranks[0]["output of average"], ranks[0]["output"])


# -- through a run ---------------------------------------------------------------------------

KEPT = {"training__ema_decay": 0.6, "training__save_every_n_epochs": 2}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A whole run that keeps an average. Not to be written to."""
    folder = tmp_path_factory.mktemp("run") / "run"
    ended = run(folder, **KEPT)
    assert ended.code == 0, ended.err
    return folder


def test_a_run_with_it_is_otherwise_the_same_run(averaged, tmp_path):
    """The swap for validation leaves no trace: weights and moments are those of a run without."""
    plain = tmp_path / "plain"
    assert run(plain, training__save_every_n_epochs=2).code == 0
    with_it, without = tensors(averaged), tensors(plain)
    names = [name for name in with_it if not name.startswith("generator/ema/")]
    assert sorted(names) == sorted(without)
    assert all(torch.equal(with_it[name], without[name]) for name in names)
    assert any(not torch.equal(value, with_it[name.replace("ema", "param")])
               for name, value in with_it.items() if name.startswith("generator/ema/"))  # fmt: skip


def test_a_resumed_run_has_the_same_average(averaged, tmp_path):
    run(tmp_path, "--stop-after-steps", "4", **KEPT)
    assert resume(tmp_path).code == 0
    assert_same_run(averaged, tmp_path)


def test_inference_and_export_take_the_average(averaged, tmp_path, capsys):
    stored = {
        name.removeprefix("generator/ema/"): value
        for name, value in tensors(averaged).items()
        if name.startswith("generator/ema/")
    }
    export(["inference", str(averaged), str(tmp_path / "model.safetensors")])
    for path in (averaged, tmp_path / "model.safetensors"):
        model = load_generator(path)
        assert model.averaged
        for name, value in model.named_parameters():
            assert torch.equal(value, stored[name]), name
    assert not load_generator(half_run()).averaged


def test_switched_on_at_a_resume_it_starts_from_the_weights_and_says_so(tmp_path):
    folder = shutil.copytree(half_run(), tmp_path / "run", symlinks=True)
    before = tensors(folder)
    ended = resume(folder, "--set", "training.ema_decay=0.5", "--stop-after-steps", "6")
    assert ended.code == 0, ended.err
    assert "holds no average; it starts from the weights" in ended.out
    after = tensors(folder)
    for name, value in after.items():
        if name.startswith("generator/ema/"):
            weight = name.replace("/ema/", "/param/")
            assert torch.allclose(value, (before[weight] + after[weight]) / 2, atol=1e-7)


def test_switched_off_at_a_resume_it_is_left_behind(averaged, tmp_path):
    folder = tmp_path / "run"
    run(folder, "--stop-after-epochs", "2", **KEPT)
    assert any("/ema/" in name for name in tensors(folder))
    ended = resume(folder, "--set", "training.ema_decay=null")
    assert ended.code == 0, ended.err
    kept, with_it = tensors(folder), tensors(averaged)
    assert not any("/ema/" in name for name in kept)
    assert all(torch.equal(value, with_it[name]) for name, value in kept.items())


@pytest.mark.parametrize("decay", ["0", "1", "1.5", "-0.1"])
def test_impossible_decays_are_named(tmp_path, decay):
    ended = run(tmp_path, training__ema_decay=float(decay))
    assert (
        ended.code == 2
        and f"training.ema_decay = {float(decay)}; allowed: float, above 0, below 1" in ended.err
    )
