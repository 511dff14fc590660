"""`benchmarks/elastic.py`: its launches, and what it calls a difference."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.elastic import as_table, off, parser, rounds
from benchmarks.options import fields_of

AT = {"epoch": 1, "samples": 8}


def chosen(folder: Path) -> Namespace:
    return parser().parse_args(
        ["--worlds", "8", "4", "8", "--steps", "2", "--folder", str(folder), "--config", "demo"]
    )


def test_each_round_resumes_what_the_one_before_has_saved(tmp_path):
    args = chosen(tmp_path)
    found = rounds(args, fields_of(args, {}))
    assert [[launch.name for launch in launches] for launches in found] == [
        ["fsdp-whole-6-on-8", "fsdp-elastic-2-on-8", "zero2-whole-6-on-8", "zero2-elastic-2-on-8"],
        ["fsdp-elastic-4-on-4", "zero2-elastic-4-on-4"],
        ["fsdp-elastic-6-on-8", "zero2-elastic-6-on-8"],
    ]
    first, later = found[0][1].argv, found[1][0].argv
    assert later == [*first[:3], "--stop-after-steps", "4", "--resume", "auto"]
    assert "training.global_batch_size=8" in first and first[-2:] == ["--config", "demo"]


def test_a_loss_of_zero_is_compared_absolutely():
    assert off(0.0, 0.0) == 0 and off(1e-5, 0.0) == 1e-5 and off(202.0, 200.0) == 0.01


@pytest.mark.parametrize(("step", "good"), [(2, True), (3, False), (4, True), (5, False)])
def test_the_first_step_on_other_ranks_is_judged(tmp_path, step, good):
    for engine in ("fsdp", "zero2"):
        for run in ("whole", "elastic"):
            folder = tmp_path / f"{engine}-{run}"
            folder.mkdir()
            lines = [
                {**AT, "step": n, "train/G_loss": 2.0 + (0.01 if (n, run) == (step, "elastic") else 0), "train/D_loss": 0.0}
                for n in range(1, 7)
            ]  # fmt: skip
            text = "".join(json.dumps(line) + "\n" for line in [{**AT, "step": 0, "val/loss": 1.0}, *lines])
            (folder / "metrics.jsonl").write_text(text)
    table, found = as_table(chosen(tmp_path))
    assert found is good
    assert table.count("OUT") == (0 if good else 2)
    assert "| fsdp | 3 | 4 | 2.000000 |" in table
