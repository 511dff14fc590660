"""`launch/submit.py`: the batch text, local processes, and a real Slurm with submitit's requeue."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import submitit

from neuropbr_dist.cluster.submit import local_rank
from tests.support import train_runs
from tests.support.distributed import ROOT
from tests.support.forked import call
from tests.support.slurm import Gate, running_cluster

SCRIPT = str(ROOT / "launch" / "submit.py")
GOLDEN = Path(__file__).parent / "golden" / "submit.sbatch"
SETTINGS = {"training__global_batch_size": 4, "training__save_every_n_steps": 2, "training__epochs": 8}
STEPS = 10
SUBMIT = "from neuropbr_dist.commands.submit import run\nrun()\n"
WITHIN_S = 240


@pytest.fixture(scope="module")
def cluster():
    with running_cluster() as cluster:
        yield cluster


def start(folder: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    env = {**(env or os.environ), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        [sys.executable, SCRIPT, *words], cwd=folder, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def submit(folder: Path, *words: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    process = start(folder, *words, env=env)
    out, err = process.communicate(timeout=WITHIN_S)
    return process.returncode, out, err


def job_id(out: str) -> str:
    found = re.search(r"^Job (\d+): run folder ", out, re.MULTILINE)
    assert found is not None, out
    return found[1]


def assert_went_on(folder: Path, log: str) -> None:
    """In a second life, from a save at a step boundary, every step once."""
    starts = [start["step"] for start in train_runs.state(folder)["starts"]]
    assert len(starts) == 2 and starts[0] == 0 < starts[1] < STEPS
    assert f"Stopped (signal) after step {starts[1]}" in log
    lines = train_runs.metrics(folder)
    assert [line["step"] for line in lines if "train/G_loss" in line] == list(range(1, STEPS + 1))


# -- without Slurm -----------------------------------------------------------------------------


def test_dry_run_prints_the_batch_file(tmp_path):
    (tmp_path / "srun").write_text("")  # submitit looks for it and doesn't call it
    (tmp_path / "srun").chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code, out, err = submit(
        tmp_path, "--dry-run", "--nodes", "8", "--gpus-per-node", "4", "--cpus-per-task", "12",
        "--time", "720", "--name", "high", "--sbatch", "partition=gpu", "--sbatch", "account=pbr",
        "--setup", "module load cuda", "--config", "high_quality", env=env | {"PATH": f"{tmp_path}:{env['PATH']}"},
    )  # fmt: skip
    assert code == 0, err
    for place, name in ((sys.executable, "PYTHON"), (str(tmp_path), "HERE"), (str(ROOT), "PROJECT")):
        out = out.replace(place, name)
    assert out == GOLDEN.read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--executor", "local", "--nodes", "2"],
            "error: --nodes 2: --executor local has one node, this one",
        ),
        (["--executor", "debug", "--tasks-per-node", "2"], "error: --executor debug runs in this process"),
        (["--executor", "local", "--set", "model.nope=1"], "error: --set: unknown key 'model.nope'"),
        (["--executor", "local", "--dry-run"], "error: --dry-run shows the batch file of --executor slurm"),
    ],
)
def test_a_wrong_request_is_one_line(tmp_path, words, line):
    ended = call(SUBMIT, *words, cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(line) and ended.err.count("\n") == 1


def test_no_slurm_is_one_line(tmp_path):
    ended = call(SUBMIT, env={"PATH": "/nonexistent"}, cwd=tmp_path)
    assert ended.code == 2 and ended.err.startswith("error: --executor slurm: no srun on PATH;")


def test_ranks_of_this_machine_meet_at_the_jobs_port_or_a_given_one(monkeypatch):
    for name, value in {"JOB_ID": "12030", "NTASKS": "2", "GLOBALID": "1", "LOCALID": "1"}.items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", value)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    exported: dict[str, str] = {}
    local_rank(submitit.JobEnvironment(), {}).export(exported)
    place = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }
    assert exported == place | {"MASTER_PORT": "20030"}
    assert local_rank(submitit.JobEnvironment(), {"MASTER_PORT": "1234"}).master_port == 1234


@pytest.mark.multiprocess
@pytest.mark.drill
def test_local_processes_train_stop_and_go_on(tmp_path):
    gate = Gate(tmp_path)
    process = start(
        tmp_path, "--executor", "local", "--tasks-per-node", "2", "--follow", "--checkpoint-dir", "run",
        *train_runs.tiny_words(**SETTINGS), *gate.words,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    first = process.stdout.readline()
    while not gate.reached(2):
        assert process.poll() is None, process.communicate()
    os.kill(int(job_id(first)), signal.SIGTERM)  # submitit hands it on to the tasks
    gate.open()
    out = process.stdout.read()  # what `communicate` gives lacks what was read along with the first line
    assert process.wait() == 0, out + process.stderr.read()
    assert out.endswith(f"newest checkpoint {tmp_path}/run/step_{STEPS:08d}\n")
    assert re.search(r"^-- \d\d:\d\d:\d\d job \d+: RUNNING$", out, re.MULTILINE), out
    assert_went_on(tmp_path / "run", out)


@pytest.mark.drill
def test_debug_trains_in_this_process(tmp_path):
    code, out, err = submit(
        tmp_path, "--executor", "debug", "--checkpoint-dir", "run", "--stop-after-steps", "1",
        *train_runs.tiny_words(**SETTINGS),
    )  # fmt: skip
    assert code == 0, err
    assert "Stopped (--stop-after-steps) after step 1" in out
    assert train_runs.state(tmp_path / "run")["step"] == 1


# -- on Slurm ----------------------------------------------------------------------------------


@pytest.mark.slurm
@pytest.mark.multiprocess
def test_slurm_interrupts_requeues_and_finishes(cluster, tmp_path, monkeypatch):
    gate = Gate(tmp_path)
    code, out, err = submit(
        tmp_path, "--nodes", "2", "--tasks-per-node", "1", "--name", "tiny",
        *train_runs.tiny_words(**SETTINGS), *gate.words, env=cluster.env,
    )  # fmt: skip
    assert code == 0, err
    number = job_id(out)
    log = tmp_path / "submitit" / number / f"{number}_0_log.out"
    assert f"tail -F {log}\n" in out and f"scancel {number}\n" in out
    cluster.until(lambda: gate.reached(2), "both ranks wait at the gate", job=number)
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    submitit.SlurmJob(tmp_path / "submitit" / "%j", number, [0, 1])._interrupt()
    gate.open()
    assert cluster.finish(number)["JobState"] == "COMPLETED", log.read_text()
    assert cluster.job(number)["Restarts"] == "1"
    run = tmp_path / "checkpoints" / f"tiny-{number}"
    assert_went_on(run, log.read_text())
    result = submitit.SlurmJob(tmp_path / "submitit" / "%j", number).result()
    assert result == f"{run}/step_{STEPS:08d}"


@pytest.mark.slurm
@pytest.mark.multiprocess
def test_follow_shows_the_run_and_its_failure(cluster, tmp_path):
    code, out, err = submit(
        tmp_path, "--follow", *train_runs.tiny_words(**SETTINGS), "--input-dir", "/no/such", env=cluster.env
    )
    assert code == 2
    assert "/no/such: no such folder (data.input_dir)" in out
    assert re.search(r"^-- \d\d:\d\d:\d\d job \d+: (RUNNING|PENDING|CONFIGURING)", out, re.MULTILINE), out
    assert re.match(r"error: job \d+ failed: .*UserError: /no/such: no such folder", err), err


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--sbatch", "partition=nope"], "invalid partition specified: nope"),
        (["--nodes", "3"], "Node count specification invalid"),  # there are two
        (["--sbatch", "nope=1"], "unrecognized option '--nope=1'"),
    ],
)
def test_what_slurm_refuses_is_one_line(cluster, tmp_path, words, reason):
    code, out, err = submit(tmp_path, *words, env=cluster.env)
    assert (code, out) == (2, ""), out
    assert err.startswith("error: sbatch refused the job: ") and reason in err and err.count("\n") == 1, err
