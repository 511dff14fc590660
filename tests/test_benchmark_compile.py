"""`launch/benchmark.py compile`: what is counted in which phase, and that the second process finds the first one's cache."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.cli import run as benchmark
from benchmarks.compiling_row import measure
from benchmarks.ranks import run_alone
from benchmarks.setting import setting
from neuropbr_dist.commands.train import config_of
from neuropbr_dist.errors import UserError
from tests.support.code_generation import no_code_generation
from tests.support.train_runs import TINY

PHASES = ["GAN off", "GAN on", "validation", "training again"]


def phases(*words: str) -> list[dict]:
    with no_code_generation(), setting(config_of([*TINY, *words])) as where:
        found = measure(where, "low", steps=3)
    assert 0 < found["first_step_s"] < found["settled_s"]
    return found["phases"]


@pytest.mark.drill
def test_each_phase_compiles_in_its_first_step_and_training_again_nothing():
    rows = phases("--compile", "blocks")
    assert [row["phase"] for row in rows] == PHASES
    assert all(row["graphs"] > 0 for row in rows[:3]) and rows[3]["graphs"] == 0
    assert all(row["recompilations"] == row["uncompiled"] == row["graph_breaks"] == 0 for row in rows)


def test_without_a_discriminator_there_is_no_gan_phase():
    assert [row["phase"] for row in phases("--compile", "off", "--set", "model.use_gan=false")] == [
        PHASES[0],
        *PHASES[2:],
    ]


def test_a_graph_that_a_later_step_asks_for_is_a_recompilation(monkeypatch):
    sizes = iter([32, 32, 64, 32, 32, 32, 64, 32, 96])

    def other_sizes(bench, *, gan: bool) -> None:
        double(torch.zeros(next(sizes)))

    monkeypatch.setattr("benchmarks.compiling_row.StepBench.step", other_sizes)
    with no_code_generation():
        double = torch.compile(lambda x: x * 2, dynamic=False)
        with setting(config_of([*TINY, "--compile", "off"])) as where:
            found = {row["phase"]: row for row in measure(where, "low", steps=3)["phases"]}
    assert [found[phase]["recompilations"] for phase in PHASES] == [1, 0, 0, 1]
    assert [found[phase]["graphs"] for phase in PHASES] == [2, 0, 0, 1]


@pytest.mark.drill
@pytest.mark.multiprocess
def test_two_processes_run_and_are_written_down(tmp_path, capsys):
    """Uncompiled: a CPU's compiler takes minutes."""
    out = tmp_path / "compile.json"
    benchmark(["compile", "--steps", "2", "--out", str(out), *TINY, "--compile", "off"])
    runs = json.loads(out.read_text())["runs"]
    assert list(runs) == ["empty", "filled"]
    assert all([row["phase"] for row in run["phases"]] == PHASES for run in runs.values())
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 8 and len({line.count("|") for line in table}) == 1
    assert [line.split(":")[0] for line in lines[-2:]] == ["empty", "filled"]


def test_one_step_is_too_few():
    with pytest.raises(UserError, match="--steps 1: a phase needs"):
        benchmark(["compile", "--steps", "1", "--debug"])


@pytest.mark.multiprocess
def test_a_process_that_fails_is_an_error_with_its_last_lines():
    with pytest.raises(UserError, match=r"^the measured run failed:\nonce\nupon a time$"):
        run_alone(["-c", "import os; raise SystemExit(os.environ['STORY'])"], STORY="once\nupon a time")


@pytest.mark.gpu
@pytest.mark.multiprocess
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_second_process_finds_what_the_first_has_compiled(tmp_path):
    out = tmp_path / "compile.json"
    benchmark(["compile", "--steps", "2", "--out", str(out), *TINY, "--device", "cuda"])
    runs = json.loads(out.read_text())["runs"]
    found = {cache: sum(row["found"] for row in run["phases"]) for cache, run in runs.items()}
    made = {cache: sum(row["made"] for row in run["phases"]) for cache, run in runs.items()}
    assert found["filled"] > found["empty"] and made["filled"] < made["empty"]
    assert runs["filled"]["first_step_s"] < runs["empty"]["first_step_s"]
