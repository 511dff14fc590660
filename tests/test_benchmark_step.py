"""`launch/benchmark.py step` and what its rows are measured with, as far as it goes without a GPU."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from benchmarks import attention, scaling, step_table
from benchmarks.cli import COMMANDS
from benchmarks.cli import run as benchmark
from benchmarks.options import fields_of, plans_of
from benchmarks.scaling_row import PackedBench, packed_batches
from benchmarks.setting import ONE_MICRO_BATCH, setting
from benchmarks.step import StepBench, kernel_table
from neuropbr_dist.cluster import detect
from neuropbr_dist.commands.train import config_of
from neuropbr_dist.config import with_fields
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.memory import PLANS
from neuropbr_dist.training.setup import SampleFacts, set_up
from tests.support.distributed import ROOT, run
from tests.support.material_files import write_set
from tests.support.train_runs import SIZE, TINY


def test_without_a_gpu_it_says_so_in_one_line():
    done = subprocess.run(
        [sys.executable, "launch/benchmark.py", "step"],
        capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: launch/benchmark.py step needs a CUDA device; there is none\n"


@pytest.mark.parametrize("what", ["attention", "memory", "scaling", "kernels"])
def test_what_needs_a_gpu_says_so(what, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=f"^launch/benchmark.py {what} needs a CUDA device; there is none"):
        benchmark([what, "--debug"])


RUNS = (
    "step",
    "memory",
    "compile",
    "scaling",
    "attention",
    "loader",
    "checkpoint",
    "elastic",
    "quality",
    "plane",
)
"""Measurements that take the fields of a run."""
OWN = {
    "quality": ["--to", "results"],
    "plane": ["--to", "results"],
    "register": ["--builtin", "1", "--to", "results"],
    "photos": ["--to", "results"],
    "gallery": ["run", "maps.webp", "--samples", "a"],
    "containers": ["folder"],
    "shading": ["speed"],
    "upstream": ["clone"],
    "upstream-training": ["clone", "--to", "results"],
}


@pytest.mark.parametrize("what", COMMANDS.commands)
def test_words_that_nobody_knows_are_refused(what, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark([what, *OWN.get(what, []), "--no-such"])
    assert stopped.value.code == 2 and "unrecognized arguments: --no-such" in capsys.readouterr().err


PRESETS = dict.fromkeys(RUNS, "guide") | {
    "checkpoint": None, "plan": None, "quality": "recipe", "plane": str(ROOT / "benchmarks/configs/plane-256.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("what", PRESETS)
def test_the_guides_step_is_measured_where_no_preset_is_named(what):
    """A checkpoint's is the guide's or, without a GPU, the demo's; a plan's is that of the run it is for."""
    module, rest, prog = COMMANDS.find([what, *OWN.get(what, [])])
    assert module.parser(prog).parse_args(rest).config == PRESETS[what]
    assert module.parser(prog).parse_args([*rest, "--config", "demo"]).config == "demo"


@pytest.mark.parametrize("what", RUNS)
def test_a_wrong_field_is_refused_before_anything_is_measured(what):
    with pytest.raises(UserError, match=r"^--set: unknown key 'no\.such'"):
        benchmark([what, *OWN.get(what, []), "--set", "no.such=1", "--debug"])


@pytest.mark.parametrize("what", ["step", "memory", "compile"])
@pytest.mark.parametrize(
    "words",
    [["--data", "packed"], ["--input-dir", "in", "--output-dir", "out"], ["--set", "data.packed_dir=packed"]],
    ids=" ".join,
)
def test_data_that_would_not_be_read_is_refused(what, words):
    name = " ".join(words[:2]).partition("=")[0] if words[0] == "--set" else words[0]
    with pytest.raises(UserError, match=f"^{name}: random tensors are measured; on a packed set: launch"):
        benchmark([what, *words, "--debug"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "step --set training.global_batch_size=8",
            "--set training.global_batch_size: a measured step is one",
        ),
        (
            "step --set training.memory=low --plans fast low",
            "memory plan fast, low, but training.memory = low",
        ),
        ("scaling --set training.memory=low --plan fast", "memory plan fast, but training.memory = low"),
        ("scaling --engine ddp", "--engine: --engines names it"),
        ("scaling --input-dir a --output-dir b", "--input-dir: a packed set"),
        ("scaling --size 512 --set data.image_size=256", "--size 512 means data.image_size, but that is 256"),
        ("elastic --ds zero2", "--ds: --engines names it"),
        ("elastic --size 512 --set data.image_size=256", "--size 512 means data.image_size, but that is 256"),
        ("quality --to x --checkpoint-dir run", "--checkpoint-dir: --runs names"),
        ("quality --to x --per-gpu 2", "--per-gpu needs --epochs"),
        ("loader --size 512 --set data.image_size=256", "--size 512 means data.image_size, but that is 256"),
        ("loader --input-dir a --output-dir b --set data.image_size=64", "read at their own size"),
        ("attention --tokens 9 --set data.image_size=256", "--set data.image_size: --tokens says how many"),
        ("checkpoint --checkpoint-dir run", "--checkpoint-dir: --folder names"),
        ("checkpoint --set training.save_every_n_steps=3", "every step is followed by a save"),
    ],
)
def test_a_field_that_would_be_dropped_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        benchmark([*words.split(), "--debug"])


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["--config", "demo"], 64),
        (["--config", "demo", "--size", "128"], 128),
        (["--set", "data.image_size=32", "--size", "32"], 32),
        ([], 2048),
    ],
)
def test_the_side_is_the_run_s(words, size):
    args = scaling.parser().parse_args(words)
    assert fields_of(args, {}, 2048).configuration().data.image_size == size


def test_the_memory_plans_are_the_run_s():
    def plans(*words: str) -> list[str]:
        args = step_table.parser().parse_args(words)
        return plans_of(fields_of(args, {}).configuration(), args.plans, PLANS)

    assert plans() == ["fast", "balanced", "low"] and plans("--plans", "fast") == ["fast"]
    assert (
        plans("--set", "training.memory=low")
        == plans("--set", "training.memory=low", "--plans", "low")
        == ["low"]
    )


def test_attention_has_the_model_s_shape():
    assert attention.tokens_of(config_of([])) == 49152 and attention.shapes_of(config_of([])) == [
        (32, 64),
        (16, 128),
    ]
    small = config_of(["--set", "data.image_size=512", "--set", "model.transformer_dim=512"])
    assert attention.tokens_of(small) == 3 * 32**2 and attention.shapes_of(small) == [(32, 16), (16, 32)]


@pytest.mark.drill
@pytest.mark.parametrize("script", ["elastic", "quality", "engines", "kernels", "upstream", "containers"])
def test_scripts_of_dated_files_still_start_from_any_folder(script, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{script}.py", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {script}.py"), done.stderr


def test_steps_are_timed_and_trained_wherever_they_run():
    with setting(config_of(TINY)) as where:
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
    with (
        setting(config_of([*TINY, "--data", str(tmp_path / "packed")])) as where,
        packed_batches(where) as batches,
    ):
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


def test_what_the_run_does_in_a_step_is_done_in_a_measured_one():
    """More updates of the discriminator, an average of the weights."""
    cfg = config_of([*TINY, "--set", "training.d_steps_per_g_step=3", "--set", "training.ema_decay=0.5"])
    with setting(cfg) as where:
        bench = StepBench(where, "fast")
        bench.step()
    adam = bench.networks["discriminator"].optimizer.adamw.state.values()
    assert {int(state["step"]) for state in adam} == {3}
    masters = [s.data for s in bench.networks["generator"].fragments() if s.name.startswith("param/")]
    assert any(not a.equal(b) for a, b in zip(bench.update.ema.average, masters, strict=True))


def shared_step() -> dict[str, float]:
    """Losses of a step on this rank's rows of the noise."""
    cfg = config_of([*TINY, "--engine", "ddp", "--set", "training.sample_ranks=2"])
    cfg = with_fields(cfg, training=ONE_MICRO_BATCH)
    setup = set_up(cfg, detect(), torch.device("cpu"), SampleFacts(side=SIZE))
    bench = StepBench(setup, "fast")
    bench.step()
    assert bench.batch.maps.shape[-2:] == (SIZE // 2, SIZE)
    return {name: float(value) for name, value in bench.losses.items()}


@pytest.mark.multiprocess
def test_ranks_that_share_a_sample_measure_the_same_step():
    """`torchrun --nproc-per-node=2 launch/benchmark.py step --set training.sample_ranks=2`."""
    with setting(config_of(TINY)) as where:
        bench = StepBench(where, "fast")
        bench.step()
    parts = run(2, f"{__name__}:shared_step")
    for name, value in bench.losses.items():
        assert sum(part[name] for part in parts) == pytest.approx(float(value), rel=1e-5), name
