"""torch.compile of the segments: graphs are made in a phase's first step, none later, and none is given up."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch

from benchmarks.compiling_row import Compiled
from neuropbr_dist.parallel.blocks import uncompiled
from neuropbr_dist.training.step import gan_step
from tests.support.code_generation import no_code_generation
from tests.support.disks import small_disk
from tests.support.distributed import run
from tests.support.forked import call
from tests.support.parity import Case, Row, networks, objective, rank_batch
from tests.support.said import assert_names

PHASES = ("gan off", "validation", "gan off", "validation", "gan on", "validation", "gan on", "gan off")
SINGLE = Row(engine="single", world=1, compile=True, accumulation=2)
TINY = Case(steps=1, depth=1, d_layers=1)
ENGINES = [
    Row(engine="fsdp"),
    Row(engine="deepspeed", stage=2),
    Row(engine="deepspeed", stage=3, recompute="selective"),
]


def frames_after_each_step(case: Case, row: Row) -> list[tuple[int, int, int]]:
    """Frames seen, frames compiled and graph breaks so far; three steps of each phase."""
    with no_code_generation():
        g, d = networks(case, row)
        found = []
        for phase in (phase for phase in PHASES for _ in range(3)):
            batch = rank_batch(case, row, 0)
            if phase == "validation":
                g.module.eval()
                with torch.no_grad():
                    g(batch[0].views)
                g.module.train()
            else:
                gan_step(g, d if phase == "gan on" else None, batch, objective(case), d_steps=2)
            compiled = Compiled.so_far()
            found.append((compiled.frames, compiled.graphs, compiled.breaks))
        return found


@cache
def alone(case: Case, recompute: str) -> list[tuple[int, int, int]]:
    return frames_after_each_step(case, replace(SINGLE, recompute=recompute))


def assert_settled(found: list[tuple[int, int, int]]) -> None:
    """Frames are compiled in the first step of a phase that is new, and there only."""
    made = [after - before for (before, *_), (after, *_) in zip([(0, 0, 0), *found], found, strict=False)]
    firsts = {3 * PHASES.index(phase) for phase in PHASES}
    assert {step for step, count in enumerate(made) if count} == firsts
    total, ok, breaks = found[-1]
    assert (ok, breaks) == (total, 0)


@pytest.mark.parametrize(
    ("norm", "recompute"), [("group", "selective"), pytest.param("batch", "full", marks=pytest.mark.drill)]
)
def test_nothing_is_compiled_after_a_phases_first_step(norm, recompute):
    found = alone(replace(TINY, norm=norm), recompute)
    assert_settled(found)
    # Segments share a code object, of which torch on its own compiles 8 graphs only.
    assert found[-1][0] > 8


def test_a_short_validation_compiles_nothing_and_forgets_nothing():
    """Before, between and after steps that do; what they compiled goes on."""
    with no_code_generation():
        g, _ = networks(TINY, SINGLE)
        batch, made = rank_batch(TINY, SINGLE, 0), []
        for as_written in (True, True, False, True):
            graphs = [Compiled.so_far().graphs]
            g.module.eval()
            with torch.no_grad(), uncompiled(as_written):
                g(batch[0].views)
            graphs.append(Compiled.so_far().graphs)
            g.module.train()
            gan_step(g, None, batch, objective(TINY))
            graphs.append(Compiled.so_far().graphs)
            made.append((graphs[1] > graphs[0], graphs[2] > graphs[1]))
    assert made == [(False, True), (False, False), (True, False), (False, False)]


@pytest.mark.multiprocess
@pytest.mark.drill
@pytest.mark.parametrize("row", ENGINES, ids=str)
def test_an_engine_changes_nothing_about_it(row):
    for found in run(2, f"{__name__}:frames_after_each_step", case=TINY, row=replace(row, compile=True)):
        assert found == alone(TINY, row.recompute)


def test_a_full_disk_under_the_compilers_files_is_one_line(tmp_path):
    program = (
        "import torch\n"
        "from neuropbr_dist.errors import UserError\n"
        "from neuropbr_dist.parallel.blocks import compiled, compiler_files\n"
        "try:\n"
        "    with compiler_files():\n"
        "        compiled(lambda x: x.sin() + 1)(torch.ones(64))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    with small_disk(tmp_path / "disk", "8k") as folder:
        (folder / "all").write_bytes(bytes(8192))
        done = call(program, env={"TORCHINDUCTOR_CACHE_DIR": str(folder), "TMPDIR": str(folder)})
    assert done.code == 0, done.err
    assert_names(
        done.out.strip(), ["torch.compile can't write its files", "No space left", "training.compile=off"]
    )


SIGNALLED = """
import os, signal, time
from neuropbr_dist.parallel.blocks import compiler_processes
from torch._inductor.async_compile import AsyncCompile
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
with compiler_processes():
    job = AsyncCompile.process_pool().submit(time.sleep, 2)
    time.sleep(1)
    os.killpg(0, signal.SIGTERM)
    job.result(timeout=60)
    later = AsyncCompile.process_pool().submit(os.getpgid, 0)
    assert later.result(timeout=60) == os.getpgid(0), "it compiles in a process that the signal reached"
print("compiled", flush=True)
"""


def test_a_stop_signal_to_the_whole_group_leaves_the_compiler_alone():
    """As `timeout`, Slurm and a terminal send it: a step that is being compiled is ended, then comes the save."""
    program = [sys.executable, "-c", SIGNALLED]
    env = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "2", "TORCH_WARM_POOL": "0"}
    ended = subprocess.run(
        program, env=env, capture_output=True, text=True, timeout=120, start_new_session=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["told", "compiled"]
