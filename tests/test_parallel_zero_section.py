"""What DeepSpeed doesn't take in a file's zero_optimization is named with the file, before an engine is built."""

from __future__ import annotations

import json

import pytest

from neuropbr_dist.errors import UserError
from neuropbr_dist.parallel.zero_section import check_zero_section
from tests.support.distributed import ROOT
from tests.support.train_runs import run

SHIPPED = sorted((ROOT / "ds_configs").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_pass_unchanged(path):
    section = json.loads(path.read_text())["zero_optimization"]
    before = json.dumps(section)
    check_zero_section(section, str(path))
    assert json.dumps(section) == before


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"stage": 2, "nonsense": 1}, ["zero_optimization.nonsense: DeepSpeed knows no such key"]),
        (
            {"stage": 2, "offload_optimizer": {"device": "cpu", "foo": 1}, "bar": 2},
            ["zero_optimization.offload_optimizer.foo: ", "zero_optimization.bar: "],
        ),
        (
            {"stage": 2, "overlap_comm": "maybe"},
            ["zero_optimization.overlap_comm = 'maybe'", "valid boolean"],
        ),
        ({"stage": 3, "stage3_prefetch_bucket_size": -1}, ["= -1", "greater than or equal to 0"]),
    ],
)
def test_faults_are_named(section, words):
    with pytest.raises(UserError) as found:
        check_zero_section(section, "my.json")
    assert str(found.value).startswith("my.json: ")
    assert all(word in str(found.value) for word in words)


def test_a_run_ends_in_one_line(tmp_path):
    path = tmp_path / "typo.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2, "overlap_com": True}}))
    ended = run(tmp_path / "run", "--ds", str(path))
    assert ended.code == 2 and "Traceback" not in ended.err
    assert f"{path}: zero_optimization.overlap_com: DeepSpeed knows no such key" in ended.err
