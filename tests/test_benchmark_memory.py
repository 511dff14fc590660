"""`launch/benchmark.py memory`: choices, tables and limits anywhere, measured rows on a GPU."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import allocator, memory
from benchmarks.cli import run as benchmark
from benchmarks.setting import setting
from benchmarks.step import StepBench
from neuropbr_dist.commands.train import config_of
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.estimate import available_bytes
from neuropbr_dist.training.memory import PLANS
from tests.support.train_runs import TINY

GIB = 2**30
WANTED = {"fast": 50 * GIB, "balanced": 30 * GIB, "low": 14 * GIB}
GPU = torch.device("cuda", 0)
QUICK = [*TINY, "--device", "cuda", "--compile", "off"]
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def card(monkeypatch):
    """A stand-in for a GPU of 80 GiB: 1 taken outside of the allocator, 4 by it."""
    card = SimpleNamespace(share=1.0)
    for name, function in {
        "mem_get_info": lambda _device: (75 * GIB, 80 * GIB),
        "memory_reserved": lambda _device: 4 * GIB,
        "set_per_process_memory_fraction": lambda share, _device: setattr(card, "share", share),
        "get_per_process_memory_fraction": lambda _device: card.share,
        "max_memory_reserved": lambda _device: 15 * GIB,
        "memory_allocated": lambda _device: 3 * GIB,
        "memory_stats": lambda _device: {"num_alloc_retries": 7},
        "memory_snapshot": lambda: [{"is_expandable": True}],
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    return card


# -- limits --------------------------------------------------------------------------------


def test_without_a_limit_all_that_is_free_may_be_used(card):
    assert available_bytes(GPU, 1) == 75 * GIB


def test_a_limit_counts_what_lies_outside_of_the_allocator(card):
    allocator.limit_memory(GPU, 16)
    assert card.share == 15 / 80
    assert available_bytes(GPU, 1) == 11 * GIB


@pytest.mark.parametrize("gib", [0.5, 81])
def test_a_limit_that_the_card_does_not_have_is_refused(card, gib):
    with pytest.raises(UserError, match=r"this GPU has 80\.0 GiB, 1\.0 of them taken"):
        allocator.limit_memory(GPU, gib)
    assert card.share == 1


# -- choices and tables --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (78.5, "`fast`: about 50.0 of 78.5 GiB free"),
        (39.0, "`balanced`: about 30.0 of 39.0 GiB free"),
        (14.5, "`low`: about 14.0 of 14.5 GiB free"),
        (11.0, "none: `low` needs about 14.0 of 11.0 GiB free"),
    ],
)
def test_the_choice_is_that_of_training(free, words):
    assert memory.in_words(memory.choice(WANTED, int(free * GIB))) == words


def test_a_step_that_does_not_fit_is_a_row(card, monkeypatch):
    def held(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory, "held", held)
    row = memory.row(SimpleNamespace(device=GPU), "low", memory.Predicted(14.2, 4.6), 8)
    assert row["error"] == "out of memory" and row["reserved_gib"] == 15
    assert memory.line(row) == "| `low` | 14.2 | out of memory | – | – (4.6) | – | 15.0 | 1.0 | – | – |"


def test_rows_have_the_columns_of_their_head():
    row = {
        "plan": "low", "predicted_gib": 14.2, "predicted_state_gib": 4.6, "allocated_gib": 14.0, "error_percent": 1.43,
        "state_gib": 3.1, "activations_gib": 10.9, "reserved_gib": 18.4, "outside_gib": 0.6, "ms": 1040.2,
        "spread_ms": 85.0, "retries": 2,
    }  # fmt: skip
    line = memory.line(row)
    assert line == "| `low` | 14.2 | 14.0 | +1.4 % | 3.1 (4.6) | 10.9 | 18.4 | 0.6 | 1040 (85) | 2 |"
    assert {part.count("|") for part in (line, *memory.HEAD.splitlines())} == {11}


def test_cards_are_listed_by_their_size():
    cards = [{"card_gb": gb, **memory.choice(WANTED, int(free * GIB))} for gb, free in memory.CARDS.items()]
    assert [card["plan"] for card in cards] == ["low", "low", "balanced", "fast", "fast"]
    assert "| 16 GB | `low`: about 14.0 of 15.3 GiB free |" in memory.card_table(cards).splitlines()


def test_every_plan_is_a_row_and_the_next_goes_on_after_one_that_fails(card, monkeypatch, capsys):
    """Steps on the CPU, with the counters of the stand-in."""

    class Large(StepBench):
        def time(self, steps):
            if self.memory == "fast":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().time(steps)

        def __init__(self, where, memory):
            super().__init__(where, memory)
            self.memory = memory

    monkeypatch.setattr(memory, "StepBench", Large)
    with setting(config_of(TINY)) as where:
        found = memory.measure(where, PLANS, steps=1, limit_gib=16)
    assert card.share == 15 / 80
    assert [row.get("error") for row in found["rows"]] == ["out of memory", None, None]
    assert [row.get("retries") for row in found["rows"]] == [None, 0, 0]
    json.dumps(found)
    out = capsys.readouterr().out
    assert "as on a card of 16 GiB" in out and "| `fast` |" in out and "\nHere `auto` takes `fast`" in out


# -- on a GPU ------------------------------------------------------------------------------


@pytest.mark.gpu
@ON_GPU
def test_plans_are_measured_beside_their_estimate(tmp_path, capsys):
    out = tmp_path / "memory.json"
    words = ["memory", "--steps", "2", "--out", str(out), *QUICK]
    benchmark(words)
    found = json.loads(out.read_text())
    assert [row["plan"] for row in found["rows"]] == ["fast", "balanced", "low"]
    for row in found["rows"]:
        assert row["segments_expand"]
        assert 0 < row["state_gib"] < row["allocated_gib"] <= row["reserved_gib"]
    assert "Here `auto` takes `fast`" in capsys.readouterr().out


@pytest.mark.gpu
@ON_GPU
def test_under_a_limit_a_step_too_large_is_a_row_and_the_next_goes_on(tmp_path):
    out = tmp_path / "memory.json"
    large = ["--set", "data.image_size=1024", "--set", "training.batch_size=64"]
    try:
        benchmark(
            [
                "memory",
                "--limit-gib",
                "2",
                "--plans",
                "fast",
                "low",
                "--out",
                str(out),
                *QUICK,
                *large,
            ]
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    found = json.loads(out.read_text())
    assert [row["error"] for row in found["rows"]] == ["out of memory"] * 2
    assert all(row["reserved_gib"] < 2 for row in found["rows"])
    assert not found["here"]["starts"]
