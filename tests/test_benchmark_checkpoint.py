"""The checkpoint benchmark on a tiny run: every figure is there and adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import checkpoint
from neuropbr_dist.errors import UserError
from tests.support.train_runs import tiny_words


@pytest.mark.drill
@pytest.mark.multiprocess
def test_a_table_and_json(tmp_path, capsys):
    out = tmp_path / "figures.json"
    checkpoint.run(["--folder", str(tmp_path), "--out", str(out), *tiny_words()])
    found = json.loads(out.read_text())
    newest = (tmp_path / "run" / "latest").resolve()
    assert found["bytes"] == pytest.approx(sum(f.stat().st_size for f in newest.iterdir()), rel=0.02)
    assert len(found["later_saves"]) == checkpoint.BEFORE + checkpoint.MEASURED - 1
    assert found["write_gb_s"] > 0 and found["verify_and_load_gb_s"] > 0
    phases = [
        "imports",
        "checkpoint found and verified",
        "data set",
        "networks",
        "load",
        "first batch",
        "first step",
    ]
    assert [p for p in found["restart_s"] if p in phases] == phases
    printed = capsys.readouterr().out
    assert "| training held, first save | " in printed and "| restart: first step | " in printed


def test_a_failing_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"the measured run failed:\n.*error: --set: unknown key"):
        checkpoint.measure(Path(tmp_path), ["--set", "model.nope=1"])
