"""Ranks that share their samples by rows train the GAN to what the plain loop trains it to, on every engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.code_generation import no_code_generation
from tests.support.distributed import run
from tests.support.parity import ENGINES, Case, Row, differences, train_row
from tests.support.parity_rows import check, label, reference
from tests.support.plain_loop import train_plain_stages

# Large enough for three rows of a strip where the discriminator ends.
BASIC = Case(side=32)
PLANE = Case(side=32, plane=True, seed=5)
RENDERED = Case(side=32, plane=True, rendered=True, seed=5, steps=3, w_render=0.3)
RELIT = Case(side=32, w_render=1.0)
# A weight's gradient stands at right angles to it, and parts of it, by strips, don't: 1.5e-5 in float32.
JUDGED = Case(side=32, plane=True, judges_views=True, seed=5, double=True)
MATCHED = Case(side=32, smooth=False, double=True, w_features=1.0)
FOUR_HEADS = Case(side=48, heads=4)
THREE_HEADS = Case(side=36, heads=3, width=24)
# In float32 any two ways of summing its statistics are 3e-5 apart here, with and without sharing.
BATCH_NORM = Case(side=32, norm="sync_batch", double=True)
TINY = Case(side=32, depth=1, d_layers=1)
REAL = Case(side=32, smooth=False, double=True)


def sharing(names: str, case: Case = BASIC, **changes: Any) -> list[tuple[Case, Row]]:
    """Rows whose pairs of ranks, unless it is said otherwise, share samples."""
    return [(case, replace(ENGINES[name], **({"sample_ranks": 2} | changes))) for name in names.split()]


def rows() -> list[tuple[Case, Row]]:
    return sharing("fsdp", PLANE, recompute="full") + sharing("zero2", PLANE)


def long_rows() -> list[tuple[Case, Row]]:
    found = sharing("ddp fsdp zero0 zero1 zero2", accumulation=2, recompute="selective")
    found += sharing("ddp zero3", PLANE, recompute="full") + sharing("zero3", PLANE, recompute="selective")
    found += sharing("zero3", PLANE, persist=10_000) + sharing("fsdp", PLANE, engine_d="ddp")
    found += sharing("fsdp zero3", offload=True) + sharing("fsdp", recompute="split")
    found += sharing("ddp fsdp zero2 zero3", RENDERED, recompute="full") + sharing("fsdp", RELIT)
    found += sharing("fsdp zero3", Case(side=32, d_steps=2))
    found += sharing("fsdp zero3", THREE_HEADS, world=3, sample_ranks=3)
    found += sharing("ddp fsdp zero2 zero3", PLANE, world=4, recompute="full")
    found += sharing("fsdp", PLANE, world=4, shard="node") + sharing("fsdp", RENDERED, world=4)
    found += sharing("ddp fsdp zero3", FOUR_HEADS, world=4, sample_ranks=4, recompute="selective")
    return found


@pytest.mark.multiprocess
@pytest.mark.parametrize("pair", rows(), ids=label)
def test_matches_the_plain_loop(pair, summary):
    check(summary, pair, 1e-5)


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize("pair", long_rows(), ids=label)
def test_matches_the_plain_loop_in_long_rows(pair, summary):
    check(summary, pair, 1e-5)


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "pair",
    sharing("ddp fsdp", REAL) + sharing("fsdp", REAL, world=4)
    + sharing("ddp fsdp", JUDGED) + sharing("ddp fsdp", MATCHED, accumulation=2, recompute="full") + sharing("ddp", replace(BATCH_NORM, norm="batch")) + sharing("fsdp", BATCH_NORM, world=4),
    ids=label,
)  # fmt: skip
def test_real_losses_and_norms_in_float64(pair, summary):
    check(summary, pair, 1e-12)


def train_captured(case: Case, row: Row) -> dict[str, Any]:
    """As far as an engine or an exchange can interfere with the compiler: without code generation."""
    with no_code_generation():
        return train_row(case, row)


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero3"])
def test_captured_graphs_match_the_plain_loop(name, summary):
    (case, row), *_ = sharing(name, TINY, compile=True)
    check(summary, (case, row), 1e-5, f"{__name__}:train_captured")


STAGES = (Case(steps=2, side=32), Case(steps=2, side=48, batch=8), Case(steps=2, side=32))
"""Each rank on its own samples, then sharing them, then on its own again."""


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2", "zero3"])
def test_ranks_begin_and_end_to_share_from_stage_to_stage(name):
    alone = ENGINES[name]
    stages = list(zip(STAGES, (alone, replace(alone, sample_ranks=2), alone), strict=True))
    found = run(2, "tests.support.parity:train_stages", stages=stages)[0]
    assert max(differences(found, train_plain_stages(STAGES)).values()) <= 1e-5


# -- the check bites -----------------------------------------------------------------------


def patches_not_weighed(case: Case, row: Row) -> dict[str, Any]:
    """Wrong on purpose: every strip's patches count alike, though the last strip has fewer."""
    strip = row.strip
    assert strip is not None
    kind = type(strip)
    original = kind.share
    kind.share = lambda self, x: x.new_full((), 1 / self.count)  # type: ignore[method-assign]
    try:
        return train_row(case, row)
    finally:
        kind.share = original  # type: ignore[method-assign]


class Blank:
    """Neighbours' rows as if nothing were in them."""

    def __init__(self, coming: Any) -> None:
        self.coming = coming

    def wait(self) -> tuple[Any, ...]:
        return tuple(None if rows is None else torch.zeros_like(rows) for rows in self.coming.wait())


def rows_never_come(case: Case, row: Row, way: str) -> dict[str, Any]:
    """Wrong on purpose: of the neighbours' rows, or of the gradients of this strip's, none arrive."""
    strip = row.strip
    assert strip is not None
    kind = type(strip)
    original = kind.exchange

    def exchange(self: Any, *rows: Any) -> Any:
        backward = torch._C._current_graph_task_id() != -1
        coming = original(self, *rows)
        return Blank(coming) if (way == "back") == backward else coming

    kind.exchange = exchange  # type: ignore[method-assign]
    try:
        return train_row(case, row)
    finally:
        kind.exchange = original  # type: ignore[method-assign]


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize("way", ["there", "back"])
def test_notices_rows_that_never_come(way):
    (case, row), *_ = sharing("ddp")
    found = run(2, f"{__name__}:rows_never_come", case=case, row=row, way=way)[0]
    assert max(differences(found, reference(case)).values()) > 1e-2


@pytest.mark.drill
@pytest.mark.multiprocess
def test_notices_patches_that_are_not_weighed():
    (case, row), *_ = sharing("ddp")
    found = run(2, f"{__name__}:patches_not_weighed", case=case, row=row)[0]
    assert max(differences(found, reference(case)).values()) > 1e-2
