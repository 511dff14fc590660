"""`launch/benchmark.py scaling` and `benchmarks/engines.py`: launches, intervals and tables, without a GPU."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import scaling, scaling_row
from benchmarks.cli import run as benchmark
from benchmarks.communication import communication_ms, length, overlap, union
from benchmarks.options import fields_of
from benchmarks.ranks import ROOT, Launch, error_in, run_all
from neuropbr_dist.data.packed.pack import pack
from tests.support.material_files import write_set
from tests.support.train_runs import SIZE, TINY

CUDA = torch.autograd.DeviceType.CUDA


def event(name: str, begin: float, end: float, **more: object) -> SimpleNamespace:
    """As `torch.profiler` gives it; microseconds."""
    span = SimpleNamespace(start=begin, end=end)
    return SimpleNamespace(
        **{"name": name, "time_range": span, "device_type": CUDA, "is_user_annotation": False, **more}
    )


def test_exposed_is_where_nccl_runs_alone():
    events = [
        event("ncclDevKernel_AllGather", 0, 4000),
        event("ncclDevKernel_ReduceScatter", 3000, 6000),  # on another stream: 3000 to 4000 counts once
        event("triton_fused", 1000, 2000),
        event("gemm", 5500, 9000),
        event("Memcpy DtoD", 0, 9000),  # a copy hides nothing
        event("FSDP::all_gather", 0, 9000, is_user_annotation=True),
        event("aten::mm", 0, 9000, device_type=torch.autograd.DeviceType.CPU),
    ]
    assert communication_ms(events) == (6.0, 4.5)


def test_intervals_are_those_of_their_points():
    rng = random.Random(0)

    def some() -> list[tuple[float, float]]:
        starts = [rng.randrange(60) for _ in range(rng.randrange(1, 12))]
        return [(begin, begin + rng.randrange(1, 9)) for begin in starts]

    def points(spans: list[tuple[float, float]]) -> set[int]:
        return {i for begin, end in spans for i in range(int(begin), int(end))}

    for _ in range(200):
        a, b = some(), some()
        assert length(union(a)) == len(points(a))
        assert length(overlap(union(a), union(b))) == len(points(a) & points(b))


# -- launches ------------------------------------------------------------------------------

SCRIPT = """
import os, pathlib, sys
e = os.environ
line = " ".join(e[k] for k in ("CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
pathlib.Path(sys.argv[1] + e["RANK"]).write_text(line)
if sys.argv[2:]:
    raise ValueError(sys.argv[2])
"""


@pytest.mark.drill
@pytest.mark.multiprocess
def test_a_launch_has_gpus_of_its_own_and_a_failed_one_costs_itself_only(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def launch(name: str, ranks: int, nodes: int = 1, *more: str) -> Launch:
        return Launch(name=name, ranks=ranks, nodes=nodes, argv=[str(script), str(tmp_path / name), *more])

    ended: dict[str, str] = {}
    launches = [launch("two-nodes", 2, 2), launch("broken", 1, 1, "no such thing"), launch("large", 4)]
    run_all(launches, [5, 6, 7], tmp_path / "logs", lambda one, fault: ended.update({one.name: fault}), 200)

    assert ended["two-nodes"] == ""
    assert (tmp_path / "two-nodes0").read_text() == "5 0 2 0 1"
    assert (tmp_path / "two-nodes1").read_text() == "6 1 2 0 1"
    assert ended["broken"] == "ended with code 1: ValueError: no such thing"
    assert (tmp_path / "broken0").read_text() == "7 0 1 0 1"
    assert ended["large"] == "needs 4 GPUs, 3 here"


@pytest.mark.drill
@pytest.mark.multiprocess
def test_a_launch_over_its_limit_is_ended_with_its_ranks(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(999)"
    )
    ended: list[str] = []
    launch = Launch(name="slow", ranks=1, argv=[str(script)])
    run_all([launch], [0], tmp_path, lambda _one, fault: ended.append(fault), 20)
    assert ended[0].startswith("over its time limit")
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "started",
    [
        "run_all([Launch(name='slow', ranks=1, argv=[{script!r}])], [0], Path({logs!r}), print, 999)",
        "run_alone(['-m', 'torch.distributed.run', '--standalone', {script!r}])",
    ],
    ids=["run_all", "run_alone"],
)
def test_a_measurement_that_is_ended_ends_what_it_started(tmp_path: Path, started: str):
    """`timeout` sends SIGTERM: a run of hours would go on, and keep its GPU."""
    script, pid = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(999)")
    starts = "from pathlib import Path\nfrom benchmarks.ranks import Launch, run_all, run_alone\n"
    starts += started.format(script=str(script), logs=str(tmp_path))
    measurement = subprocess.Popen([sys.executable, "-c", starts], cwd=ROOT)
    end = time.monotonic() + 120
    while not (pid.exists() and pid.read_text()):
        assert measurement.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    measurement.terminate()
    assert measurement.wait(60) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{pid.read_text()}").exists()


def test_the_error_of_a_log_is_the_first_rank_s(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text("W1126 a warning\n[rank1]: RuntimeError: one\n[rank0]: ValueError: two\nE1126 ended\n")
    assert error_in(log) == "[rank1]: RuntimeError: one"
    log.write_text("last words")
    assert error_in(log) == "last words"


def test_rows_are_launched_for_every_engine_and_world():
    """Those on random tensors don't get the packed set, however it is named."""
    words = (
        "--engines fsdp hsdp single --worlds 1 4 --set data.packed_dir=set --set data.val_ratio=0.3 --size 64"
    )
    args = scaling.parser().parse_args(words.split())
    found = scaling.launches(args, fields_of(args, {}), "low")
    assert [one.name for one in found] == [
        "fsdp-1-random", "single-1-random", "fsdp-4-random", "hsdp-4-random",
        "fsdp-1-packed", "single-1-packed", "fsdp-4-packed", "hsdp-4-packed",
    ]  # fmt: skip
    assert [one.nodes for one in found] == [1, 1, 1, 2, 1, 1, 1, 2]
    for one in found:
        row = scaling_row.parser().parse_args(one.argv[2:])
        cfg = fields_of(row, {}).configuration()
        assert row.plan == "low" and cfg.data.image_size == 64 and cfg.data.val_ratio == 0.3
        assert cfg.data.packed_dir == ("set" if one.name.endswith("packed") else None)
        assert not cfg.model.encoder_pretrained and cfg.training.engine == one.name.split("-")[0].replace(
            "h", "f"
        )


# -- tables --------------------------------------------------------------------------------


def test_a_row_is_held_against_one_gpu_and_a_failed_one_shows_its_error():
    row = {
        "data": "random", "spread_ms": 2.0, "allocated_gib": [20.0, 20.04], "reserved_gib": [22.0, 23.0],
        "nccl_ms": [9.0, 12.0], "exposed_ms": [1.0, 1.0], "matmul_tflops": [700.0, 710.0], "first_step_s": 5.0,
        "data_wait": [0.0, 0.0],
    }  # fmt: skip
    rows = [
        {"name": "fsdp", "world": 4, "ms": 1010.0, "samples_per_s_rank": 0.99, **row},
        {"name": "fsdp", "world": 1, "ms": 1000.0, "samples_per_s_rank": 1.0, **row},
        {"name": "zero2", "world": 1, "data": "random", "error": "ended with code 1: a|b"},
    ]
    lines = scaling.as_table(rows).splitlines()
    assert "| 100.0% |" in lines[2] and "| 99.0% | – | – | 20.0 | 22.0–23.0 | 9.0–12.0 | 1.0 |" in lines[3]
    assert "ended with code 1: a/b" in lines[4]
    assert len({line.count("|") for line in lines}) == 1


def test_a_row_on_a_packed_set_is_held_against_random_tensors():
    row = {
        "name": "single", "world": 1, "spread_ms": 2.0, "allocated_gib": [20.0], "reserved_gib": [22.0],
        "nccl_ms": [0.0], "exposed_ms": [0.0], "matmul_tflops": [700.0], "first_step_s": 5.0,
    }  # fmt: skip
    packed = {"data": "packed", "ms": 1010.0, "samples_per_s_rank": 0.99, "data_wait": [0.0123], **row}
    random = {"data": "random", "ms": 1000.0, "samples_per_s_rank": 1.0, "data_wait": [0.0], **row}
    failed = {"name": "fsdp", "world": 1, "data": "packed", "error": "ended with code 1"}
    rows = [packed, failed]
    scaling.compare(rows)  # as rows come; nothing to hold it against yet
    assert "of_random" not in packed
    rows.append(random)
    scaling.compare(rows)
    assert packed["of_random"] == 0.99 and "of_random" not in random
    lines = scaling.as_table(rows).splitlines()
    assert "| single | random | 1 | 1000.0 (2.0) | 1.0000 | 100.0% | – | – |" in lines[2]
    assert "| single | packed | 1 | 1010.0 (2.0) | 0.9900 | 100.0% | 99.0% | 1.2 % |" in lines[4]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.gpu
@pytest.mark.multiprocess
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_one_gpu_runs_on_random_tensors_and_on_a_packed_set(tmp_path: Path):
    renders, maps = write_set(tmp_path, {f"sample_{i:04d}": f"material_{i}" for i in range(3)}, size=SIZE)
    pack(renders, maps, tmp_path / "packed")
    words = [
        "--worlds",
        "1",
        "--engines",
        "single",
        "--size",
        str(SIZE),
        "--steps",
        "4",
        "--data",
        str(tmp_path / "packed"),
    ]
    benchmark(
        [
            "scaling",
            *words,
            "--folder",
            str(tmp_path / "found"),
            *TINY,
            "--device",
            "cuda",
            "--compile",
            "off",
        ]
    )
    random, packed = json.loads((tmp_path / "found" / "scaling.json").read_text())
    assert (random["data"], packed["data"]) == ("random", "packed")
    assert packed["of_random"] > 0 and 0 <= packed["data_wait"][0] < 1 and random["data_wait"] == [0]


@pytest.mark.drill
@pytest.mark.multiprocess
def test_engines_rehearses_on_cpu(tmp_path: Path):
    """The whole proof of one engine on one rank: launch, rows, table."""
    import subprocess

    words = [
        "--worlds",
        "1",
        "--engines",
        "zero3",
        "--no-compile",
        "--device",
        "cpu",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(
        [sys.executable, "benchmarks/engines.py", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "engines.json").read_text())
    as_they_are = [("float32", 1), ("float32", 2), ("bf16", 1), ("bf16", 2)]
    others = [
        ("plane", "float32", 2),
        ("plane", "bf16", 1),
        ("plane, judged", "float32", 2),
        ("plane, judged", "bf16", 1),
        ("as they are, matched", "float32", 2),
        ("as they are, matched", "bf16", 1),
        ("rendered", "float32", 1),
    ]
    found = [(r["views"], r["precision"], r["accumulation"]) for r in rows]
    assert found == [("as they are", *row) for row in as_they_are] + others
    table = (tmp_path / "engines.md").read_text()
    assert table.count("| ok |") == 11 and "OUT" not in table and "rror" not in table
