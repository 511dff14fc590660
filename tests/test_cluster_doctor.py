"""`launch/submit.py --doctor`: one process, torchrun, Slurm; what differs is marked and named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from neuropbr_dist.cluster import doctor
from neuropbr_dist.cluster.doctor import ALIKE, Examination, diagnose, spans
from tests.support import train_runs
from tests.support.distributed import ENVIRONMENT, ROOT, run
from tests.support.forked import call
from tests.support.slurm import running_cluster

WITHIN_S = 120
WELL = {name: "1" for name in ALIKE}


def examinations(count: int) -> list[Examination]:
    return [Examination(f"node{rank // 2}", dict(WELL)) for rank in range(count)]


def test_alike_ranks_are_a_row_a_node():
    lines, well = diagnose(examinations(4))
    assert well and len(lines) == 3
    assert [line.split()[:2] for line in lines[1:]] == [["node0", "0-1"], ["node1", "2-3"]]


def test_what_differs_from_most_is_marked_even_on_rank_0():
    found = examinations(6)
    found[0].facts["torch"] = found[1].facts["torch"] = "2"
    lines, well = diagnose(found)
    assert not well
    assert [line.startswith("!") for line in lines] == [False, True, False, False, True]
    assert lines[-1] == "! node0 (rank 0-1): torch 2, elsewhere 1"


def test_a_fault_of_one_rank_is_marked_and_named():
    found = examinations(4)
    found[3].faults.append("/data/a.png: No such file or directory")
    lines, well = diagnose(found)
    assert not well
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["node0", "0-1", "1"], ["node1", "2", "1"], ["!", "node1", "3"],
    ]  # fmt: skip
    assert lines[-1] == "! node1 (rank 3): /data/a.png: No such file or directory"


def test_spans():
    assert spans([0]) == "0" and spans([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def skewed(ahead: float) -> float:
    """`clock_skew` where rank 1's clock is so far ahead."""
    real = doctor.time.time
    try:
        if dist.get_rank() == 1:
            doctor.time.time = lambda: real() + ahead
        return doctor.clock_skew()
    finally:
        doctor.time.time = real


@pytest.mark.multiprocess
def test_the_clocks_skew_is_measured():
    first, second, third = run(3, f"{__name__}:skewed", ahead=100.0)
    assert first == 0
    assert abs(second - 100) < 1 and abs(third) < 1


def test_reading_and_writing(tmp_path):
    faults: list[str] = []
    (tmp_path / "a").write_text("a")
    one = doctor.checksum([tmp_path / "a"], faults)
    (tmp_path / "a").write_text("b")
    assert doctor.checksum([tmp_path / "a"], faults) != one and faults == []
    assert doctor.checksum([tmp_path / "gone"], faults) == "missing"
    assert doctor.free_space(tmp_path, 0, faults) > 0
    doctor.free_space(tmp_path, 2**70, faults)
    doctor.free_space(Path("/dev/null/run"), 0, faults)
    assert [fault.split(": ")[0] for fault in faults] == [
        f"{tmp_path}/gone", str(tmp_path), "/dev/null/run cannot be written to",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]  # no probe is left


SUBMIT = "from neuropbr_dist.commands.submit import run\nrun()\n"


def test_one_process(tmp_path):
    done = call(SUBMIT, "--doctor", "--checkpoint-dir", tmp_path, *train_runs.tiny_words())
    assert done.code == 0, done.out + done.err
    assert "1 rank(s) on 1 node(s): all well" in done.out


def test_a_missing_data_set_is_one_line(tmp_path):
    missing = ["--input-dir", "/no/such", "--output-dir", "/no/such"]
    done = call(SUBMIT, "--doctor", "--checkpoint-dir", tmp_path, "--device", "cpu", *missing)
    assert done.code == 2 and done.err.count("\n") == 1
    assert done.err.startswith("error: /no/such: no such folder")


@pytest.mark.drill
@pytest.mark.multiprocess
def test_torchrun_and_too_little_space(tmp_path):
    """A network of 10^9 parameters and more, whose saves fit nowhere."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    huge = ["model.transformer_dim=1048576", "model.transformer_depth=1000"]
    words = ["--checkpoint-dir", str(tmp_path), *train_runs.tiny_words()]
    command = [sys.executable, *torchrun, "launch/submit.py", "--doctor", *words]
    done = subprocess.run(
        [*command, *(word for h in huge for word in ("--set", h))],
        capture_output=True, text=True, timeout=WITHIN_S, cwd=ROOT, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    assert done.returncode != 0
    assert "GiB free, its saves need" in done.stdout and "not well, see !" in done.stdout


@pytest.mark.slurm
@pytest.mark.multiprocess
def test_srun_names_the_node_that_differs(tmp_path):
    """The second node is told of a run's folder that no one can make."""
    train = train_runs.tiny_words(training__global_batch_size=4)
    srun = ["srun", "--nodes=2", "--ntasks-per-node=2", "--overcommit", "--export=ALL"]
    command = [sys.executable, "launch/submit.py", "--doctor"]
    with running_cluster() as cluster:

        def doctored(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*srun, *words], capture_output=True, text=True, timeout=WITHIN_S, cwd=ROOT,
                env={**cluster.env, **ENVIRONMENT},
            )  # fmt: skip

        done = doctored(*command, *train, "--checkpoint-dir", str(tmp_path / "run"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "4 rank(s) on 2 node(s): all well" in done.stdout
        by_node = f'[ $SLURM_NODEID = 0 ] && d={tmp_path}/run || d=/dev/null/run; exec "$0" "$@" --checkpoint-dir $d'
        done = doctored("bash", "-c", by_node, *command, *train)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "! node2 (rank 2-3): /dev/null/run cannot be written to: Not a directory" in done.stdout
    assert [line[:1] for line in done.stdout.splitlines()[:3]] == [" ", " ", "!"]
