"""`launch/benchmark.py step` and what its rows are measured with, as far as it goes without a GPU."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from benchmarks.cli import benchmark, parser
from benchmarks.scaling_row import PackedBench, packed_batches
from benchmarks.setting import setting
from benchmarks.step import StepBench, kernel_table
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.errors import UserError
from tests.support.material_files import write_set
from tests.support.train_runs import SETTINGS, SIZE

TINY = [
    "--config", "demo", "--device", "cpu", "--set", f"data.image_size={SIZE}",
    *(word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")),
]  # fmt: skip


@pytest.mark.parametrize("what", ["attention", "step", "memory"])
def test_without_a_gpu_it_says_so_in_one_line(what):
    done = subprocess.run(
        [sys.executable, "launch/benchmark.py", what],
        capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"error: launch/benchmark.py {what} needs a CUDA device; there is none\n"


@pytest.mark.parametrize("what", ["step", "memory"])
def test_words_of_train_go_through_to_a_step(what):
    args, words = parser().parse_known_args([what, "--plans", "low", "--engine", "fsdp", "--set", "a=1"])
    assert args.plans == ["low"] and words == ["--engine", "fsdp", "--set", "a=1"]


def test_words_that_nobody_knows_are_refused():
    with pytest.raises(UserError, match=r"benchmark.py loader: unknown words --no-such"):
        benchmark(["loader", "--no-such"])


@pytest.mark.parametrize("what", ["step", "memory", "compile"])
@pytest.mark.parametrize("words", [["--data", "packed"], ["--input-dir=in", "--output-dir=out"]])
def test_data_that_would_not_be_read_is_refused(what, words):
    with pytest.raises(
        UserError, match=rf"{words[0].split('=')[0]}: launch/benchmark.py {what} takes random tensors"
    ):
        benchmark([what, *words])


def test_steps_are_timed_and_trained_wherever_they_run():
    with setting(TINY) as where:
        bench = StepBench(where, "fast")
        before = [p.detach().clone() for p in bench.networks["discriminator"].module.parameters()]
        found = bench.time(steps=2)
    assert where.samples.side == SIZE and found.ms > 0 and found.data_wait == 0
    assert {"G_loss", "D_loss"} <= set(found.losses) and all(map(math.isfinite, found.losses.values()))
    after = bench.networks["discriminator"].module.parameters()
    assert not all(a.equal(b) for a, b in zip(before, after, strict=True))


def test_steps_on_a_packed_set_say_how_long_they_waited(tmp_path):
    renders, maps = write_set(tmp_path, {f"sample_{i:04d}": f"material_{i}" for i in range(3)}, size=SIZE)
    pack(renders, maps, tmp_path / "packed", workers=1)
    with setting([*TINY, "--data", str(tmp_path / "packed")]) as where, packed_batches(where) as batches:
        bench = PackedBench(where, "fast", batches)
        noise = bench.batch
        found = bench.time(steps=2)
    assert 0 < found.data_wait < 1
    assert bench.batch.views.shape == noise.views.shape and not bench.batch.views.equal(noise.views)
    assert bench.batch.weight.tolist() == noise.weight.tolist()


def test_kernels_are_listed_with_their_time_and_calls():
    assert kernel_table([("gemm", 12.345, 3), ("norm", 1.0, 20)]).splitlines() == [
        "     12.35 ms    3 x gemm",
        "      1.00 ms   20 x norm",
    ]
