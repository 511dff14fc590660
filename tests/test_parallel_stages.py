"""Networks go from one stage to the next where they lie: the same as the plain loop, which knows no engine."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from neuropbr_dist.parallel import build_network, change_network
from tests.support.code_generation import no_code_generation
from tests.support.distributed import run
from tests.support.parity import ENGINES, Case, Row, differences, models, setup_of, train_stages
from tests.support.plain_loop import train_plain_stages

SMALL, LARGE, LAST = Case(steps=2), Case(steps=2, batch=8, side=32), Case(steps=2, batch=4, side=16)
CASES = (SMALL, LARGE, LAST)
"""Another side and batch, then back; cut and recomputed in another way each."""


def stages(row: Row) -> list[tuple[Case, Row]]:
    """Two micro-batches a rank and recomputation in the middle, none before and after, where steps can be recorded."""
    return [(SMALL, row), (LARGE, replace(row, accumulation=2, recompute="full", at_once=False)), (LAST, row)]


@cache
def reference() -> dict[str, Any]:
    return train_plain_stages(CASES)


def check(row: Row) -> None:
    made = stages(row)
    found = (
        train_stages(made) if row.world == 1 else run(row.world, f"{__name__}:train_stages", stages=made)[0]
    )
    apart = differences(found, reference())
    worst = max(apart, key=apart.__getitem__)
    assert apart[worst] <= 1e-5, (worst, apart[worst])
    assert len(found["records"]) == 6


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "row",
    [
        *(ENGINES[name] for name in ("single", "fsdp", "zero2", "zero3")),
        replace(ENGINES["ddp"], at_once=True),
    ],
    ids=str,
)
def test_three_stages_match_the_plain_loop(row):
    check(row)


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "row",
    [
        ENGINES["ddp"], ENGINES["zero0"], ENGINES["zero1"], replace(ENGINES["zero2"], offload=True),
        replace(ENGINES["zero3"], offload=True), replace(ENGINES["fsdp"], engine_d="ddp"),
        replace(ENGINES["fsdp"], world=4, shard="node"), replace(ENGINES["zero3"], persist=10_000),
    ],
    ids=str,
)  # fmt: skip
def test_three_stages_match_the_plain_loop_in_other_rows(row):
    check(row)


@pytest.mark.drill
def test_compiled_segments_are_captured_anew_for_each_side():
    """And whatever is recomputed: graphs of shapes that are gone don't count against the compiler's limit."""
    cases = [Case(steps=1, depth=1, d_layers=1, side=side) for side in (16, 32, 16)]
    row = Row(engine="single", world=1, compile=True)
    rows = [row, replace(row, recompute="selective"), row]
    with no_code_generation():
        found = train_stages(list(zip(cases, rows, strict=True)))
    assert max(differences(found, train_plain_stages(cases)).values()) <= 1e-5


def test_what_is_recomputed_is_the_stages_own():
    """Of each segment, and as the class has it where nothing is."""
    row = Row(engine="single", world=1)
    g, _ = models(SMALL)
    plans = {kind: setup_of(SMALL, replace(row, recompute=kind), "single") for kind in ("none", "full")}
    network = build_network(g, torch.device("cpu"), plans["full"])

    def replaced() -> int:
        return sum("forward" in vars(segment) for segment in g.segments().values())

    assert replaced() == len(g.segments())
    change_network(network, plans["full"], plans["none"])
    assert replaced() == 0
    change_network(network, plans["none"], plans["full"])
    assert replaced() == len(g.segments())
