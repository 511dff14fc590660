"""torch.compile of the segments: graphs are made in a phase's first step, none later, and none is given up."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from neuropbr_dist.training.step import gan_step
from tests.parity import Case, Row, networks, objective, rank_batch


@pytest.fixture
def graphs(monkeypatch):
    """Compiled frames so far. Without code generation, which takes 3 s a graph and isn't the matter here."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield counters["frames"]
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("norm", "recompute"),
    [("group", "none"), ("group", "selective"), ("group", "full"), ("batch", "full")],
)
def test_nothing_is_compiled_after_a_phases_first_step(graphs, norm, recompute):
    case = Case(steps=1, norm=norm)
    row = Row(engine="single", world=1, compile=True, accumulation=2, recompute=recompute)
    g, d = networks(case, row)
    batch = rank_batch(case, row, 0)

    def gan_off() -> None:
        gan_step(g, None, batch, objective(case))

    def gan_on() -> None:
        gan_step(g, d, batch, objective(case), d_steps=2)

    @torch.no_grad()
    def validate() -> None:
        g.module.eval()
        g(batch[0].views)
        g.module.train()

    totals = {}
    for phase in (gan_off, validate, gan_off, validate, gan_on, validate, gan_on, gan_off):
        seen_before, total_before = phase in totals, graphs["total"]
        phase()
        totals[phase] = graphs["total"]
        assert (graphs["total"] == total_before) == seen_before
        phase()
        phase()
        assert graphs["total"] == totals[phase]
    assert graphs["total"] > 8  # torch's own limit on graphs of one code object, which segments share
    assert graphs["ok"] == graphs["total"]
