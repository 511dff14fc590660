"""`--profile`: which steps are traced, and where the trace goes."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from neuropbr_dist.errors import UserError
from neuropbr_dist.training.profile import StepProfiler
from neuropbr_dist.training.start import steps_of
from tests.support.said import said
from tests.support.train_runs import run


@pytest.mark.parametrize(("text", "steps"), [("3", (3, 3)), ("2-4", (2, 4))])
def test_steps_are_named_as_one_or_two(text, steps):
    assert steps_of(text) == steps


@pytest.mark.parametrize("text", ["0", "4-2", "x", "-3", "1-2-3"])
def test_other_words_are_refused(text):
    with pytest.raises(UserError, match="N or N-M with"):
        steps_of(text)


def calls(path) -> int:
    """Attention layers' forward passes in a trace: one a step and network pass here."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sum(e.get("name") == "aten::scaled_dot_product_attention" for e in events)


def test_the_steps_asked_for_are_traced(tmp_path):
    ended = run(tmp_path, "--profile", "2-3", "--stop-after-steps", "4", training__val_every_n_epochs=100)
    assert ended.code == 0, ended.err
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "steps_2-3.trace.json.gz" and str(trace) in ended.out
    assert calls(trace) == 2


def test_a_run_that_ends_before_writes_what_it_has(tmp_path):
    assert (
        run(tmp_path, "--profile", "2-9", "--stop-after-steps", "3", training__val_every_n_epochs=100).code
        == 0
    )
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "steps_2-3.trace.json.gz" and calls(trace) == 2


def test_steps_that_were_never_taken_are_said(tmp_path):
    profiler = StepProfiler((2, 3), tmp_path, torch.device("cpu"))
    with said() as lines:
        for step in (7, 8):  # a resumed run
            profiler.before(step)
            profiler.after(step)
        assert lines == []
        profiler.finish(8)
    assert lines == ["--profile 2-3: no trace, step 2 wasn't taken; the last was 8"]
