"""`slurm/train.sbatch` on a real Slurm: two nodes, every way a job ends early, and wrong requests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import train_runs
from tests.support.distributed import ROOT
from tests.support.slurm import Cluster, Gate, running_cluster

pytestmark = [pytest.mark.slurm, pytest.mark.multiprocess]
SCRIPT = "slurm/train.sbatch"
SETTINGS = {
    "training__global_batch_size": 4,
    "training__save_every_n_steps": 2,
    "training__epochs": 8,
    "training__log_samples": True,
}
STEPS = 10  # of 4 of the set's 5 training samples, 8 epochs
ENVIRONMENT = {"PYTHON": sys.executable, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cluster():
    with running_cluster() as cluster:
        yield cluster


class Submitted:
    """A job of `script` on the tiny set, or with `only` these words; its run is in `folder`, its log beside that."""

    def __init__(
        self,
        cluster: Cluster,
        root: Path,
        *flags: str,
        words: list[str] | None = None,
        only: list[str] | None = None,
        script: str = SCRIPT,
        **env: str,
    ) -> None:
        self.cluster, self.folder = cluster, root / "run"
        env = ENVIRONMENT | {"CHECKPOINT_DIR": str(self.folder)} | env
        words = only or train_runs.tiny_words(**SETTINGS) + (words or [])
        self.id = cluster.submit(f"--output={root}/job-%j.log", *flags, script, *words, **env)
        self.log_file = root / f"job-{self.id}.log"

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def restarts(self) -> int:
        return int(self.cluster.job(self.id)["Restarts"])

    def completes(self) -> None:
        state = self.cluster.finish(self.id)["JobState"]
        assert state == "COMPLETED", self.cluster.report(self.id)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> list[str]:
    """The demo preset on fewer and smaller materials, made once."""
    cache = tmp_path_factory.mktemp("materials")
    sets = [f"data.builtin_cache={cache}", "data.builtin_count=10", "data.image_size=32", "training.epochs=4"]
    return ["--config", "demo", *(word for field in sets for word in ("--set", field))]


@pytest.mark.parametrize("engine", ["zero2", "fsdp"])
def test_two_nodes_train_as_four_local_processes(cluster, tmp_path, demo, engine):
    """One task per GPU where there are GPUs, as --ntasks-per-node says where not."""
    if engine == "zero2":
        flags = ["--nodes=2", "--gpus-per-node=2", "--cpus-per-gpu=2"]
        job = Submitted(cluster, tmp_path, *flags, only=demo)
        local = ["--ds", "ds_configs/zero2.json"]
    else:
        job = Submitted(cluster, tmp_path, "--nodes=2", "--ntasks-per-node=2", only=demo, ENGINE="fsdp")
        local = ["--engine", "fsdp"]
    job.completes()
    words = [*demo, *local, "--checkpoint-dir", str(tmp_path / "local")]
    ended = train_runs.command(*words, world=4)
    assert ended.code == 0, ended.err
    ours, reference = train_runs.tensors(job.folder), train_runs.tensors(tmp_path / "local")
    assert ours.keys() == reference.keys() and len(ours) > 20
    assert all(torch.equal(ours[name], reference[name]) for name in reference)
    assert f"Engine: {'deepspeed' if engine == 'zero2' else 'fsdp'} on 4 x cpu (slurm launcher)" in job.log
    assert "Done: 5 steps" in job.log  # of 8 of 9 training samples, 4 epochs
    ranks = sorted((job.folder / f"slurm-{job.id}").iterdir())
    assert [path.name for path in ranks] == [f"rank_{i}.log" for i in range(4)]


# -- ended early -------------------------------------------------------------------------------


def held(cluster: Cluster, root: Path, gate: Gate, script: str = SCRIPT) -> tuple[Submitted, int]:
    """A run on two nodes that waits inside a step; its last saved step."""
    flags = ["--nodes=2", "--ntasks-per-node=1"]
    job = Submitted(cluster, root, *flags, words=gate.words, script=script, ENGINE="fsdp")
    latest = job.folder / "latest"
    cluster.until(lambda: gate.reached(2) and latest.exists(), "both ranks wait at the gate", job=job.id)
    return job, int(latest.readlink().name.removeprefix("step_"))


def assert_went_on(job: Submitted, from_step: int | None = None) -> int:
    """Restarted once, and every step logged once; returns the step of the restart."""
    job.completes()
    assert job.restarts() == 1
    starts = [start["step"] for start in train_runs.state(job.folder)["starts"]]
    assert len(starts) == 2 and starts[0] == 0 < starts[1] < STEPS
    assert from_step in (None, starts[1])
    assert_every_step_once(job)
    assert f"Job {job.id}, start 2" in job.log
    return starts[1]


def assert_every_step_once(job: Submitted) -> None:
    """In the run's log; and in each epoch each sample once, over all starts."""
    lines = train_runs.metrics(job.folder)
    assert [line["step"] for line in lines if "train/G_loss" in line] == list(range(1, STEPS + 1))
    seen = train_runs.times_seen(job.folder)
    assert len(seen) == 8 and len(seen["1"]) == 5
    assert all(counts == seen["1"] and set(counts.values()) == {1} for counts in seen.values())


def test_a_folder_of_materials_is_trained_on(cluster, tmp_path):
    """`sbatch slurm/train.sbatch --materials MATERIALS`, as docs/data.md has it: no renders, no cameras."""
    _, maps = train_runs.tiny_set()
    sets = [
        "data.image_size=32",
        "data.renders_per_epoch=4",
        "training.epochs=1",
        "training.global_batch_size=4",
    ]
    words = ["--config", "demo", "--materials", str(maps), *(word for one in sets for word in ("--set", one))]
    job = Submitted(cluster, tmp_path, "--nodes=2", "--ntasks-per-node=1", only=words, ENGINE="fsdp")
    job.completes()
    assert re.search(r"Source: rendered online from 6 materials of .* × 4 repeats", job.log), job.log
    assert (job.folder / "best_model").exists()


def test_a_warning_to_the_batch_shell_saves_and_requeues(cluster, tmp_path):
    gate = Gate(tmp_path)
    job, saved = held(cluster, tmp_path, gate)
    cluster.call("scancel", "--batch", "--signal=USR1", job.id)
    gate.open()
    went_on_at = assert_went_on(job)
    assert went_on_at > saved  # saved at the boundary, not lost since the last periodic save
    assert f"Stopped (signal) after step {went_on_at}" in job.log
    assert not (job.folder / "requeue").exists()


def test_a_preempted_job_saves_gives_way_and_goes_on(cluster, tmp_path):
    """A job of a partition that goes first wants both nodes: Slurm's SIGTERM, then a minute of grace."""
    gate = Gate(tmp_path)
    job, saved = held(cluster, tmp_path, gate)
    urgent = cluster.submit(
        "--partition=urgent", "--nodes=2", "--exclusive", f"--output={tmp_path}/urgent.log", "--wrap=sleep 1"
    )
    cluster.until(lambda: cluster.job(job.id)["PreemptTime"] != "None", "told to give way", job=job.id)
    gate.open()
    went_on_at = assert_went_on(job)
    assert went_on_at > saved and f"Stopped (signal) after step {went_on_at}" in job.log
    assert cluster.job(urgent)["JobState"] == "COMPLETED"


def test_a_requeue_by_hand_goes_on_from_the_last_save(cluster, tmp_path):
    gate = Gate(tmp_path)
    job, saved = held(cluster, tmp_path, gate)
    cluster.call("scontrol", "requeue", job.id)
    cluster.until(lambda: job.restarts() == 1, "requeued")
    cluster.until(lambda: cluster.job(job.id)["JobState"] != "COMPLETING", "its processes are gone")
    gate.open()
    assert_went_on(job, saved)


def test_a_node_set_down_requeues_and_goes_on_from_the_last_save(cluster, tmp_path):
    gate = Gate(tmp_path)
    job, saved = held(cluster, tmp_path, gate)
    cluster.call("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    cluster.until(lambda: job.restarts() == 1, "requeued")
    cluster.until(lambda: "idle" in cluster.call("sinfo", "-h", "-n", "node1", "-o", "%T"), "node1 is free")
    gate.open()  # the node itself is well, and comes back by itself
    assert_went_on(job, saved)


@pytest.mark.parametrize(
    ("script", "node"),
    [
        (SCRIPT, "node2"),
        ("slurm/elastic.sbatch", "node1"),  # which hosts the rendezvous and runs the batch script
    ],
)
def test_a_dead_node_requeues_and_goes_on_from_the_last_save(cluster, tmp_path, script, node):
    gate = Gate(tmp_path)
    job, saved = held(cluster, tmp_path, gate, script=script)
    cluster.lose_node(node)
    gate.open()
    cluster.until(lambda: job.restarts() == 1, "requeued")
    cluster.start_node(node)
    assert_went_on(job, saved)


def test_a_cancelled_job_saves_and_stays_cancelled(cluster, tmp_path):
    gate = Gate(tmp_path)
    job, saved = held(cluster, tmp_path, gate)
    cluster.call("scancel", job.id)
    gate.open()
    cluster.until(lambda: cluster.call("squeue", "-h", "-j", job.id) == "", "gone")
    assert cluster.job(job.id)["JobState"] == "CANCELLED" and job.restarts() == 0
    assert train_runs.state(job.folder)["step"] > saved
    assert "Requeueing" not in job.log


def test_torchrun_restarts_a_lost_rank_inside_the_job(cluster, tmp_path):
    gate = Gate(tmp_path)
    job, saved = held(cluster, tmp_path, gate, script="slurm/elastic.sbatch")
    cluster.call(
        "srun",
        f"--jobid={job.id}",
        "--overlap",
        "-N1",
        "-n1",
        "-w",
        "node2",
        "kill",
        "-KILL",
        gate.process(1),
    )
    gate.open()
    job.completes()
    assert job.restarts() == 0
    assert [start["step"] for start in train_runs.state(job.folder)["starts"]] == [0, saved]
    assert_every_step_once(job)


def test_torchrun_hands_the_warning_to_its_ranks(cluster, tmp_path):
    gate = Gate(tmp_path)
    job, saved = held(cluster, tmp_path, gate, script="slurm/elastic.sbatch")
    cluster.call("scancel", "--batch", "--signal=USR1", job.id)
    gate.open()
    assert assert_went_on(job) > saved


def test_torchrun_goes_on_without_a_lost_node(cluster, tmp_path):
    """The job keeps its other nodes and goes on from the last save, in the same start."""
    gate = Gate(tmp_path)
    job, saved = held(cluster, tmp_path, gate, script="slurm/elastic.sbatch")
    cluster.lose_node("node2")
    gate.open()
    job.completes()
    assert job.restarts() == 0
    starts = train_runs.state(job.folder)["starts"]
    assert [(start["step"], start["world_size"]) for start in starts] == [(0, 2), (saved, 1)]
    assert_every_step_once(job)
    cluster.start_node("node2")
    cluster.until(lambda: "idle" in cluster.call("sinfo", "-h", "-n", "node2", "-o", "%T"), "node2 is back")


def test_a_run_stops_before_its_time_limit_and_is_requeued(cluster, tmp_path):
    """By itself: the warning signal is one that nobody minds. A limit is a whole minute at least."""
    flags = ["--nodes=2", "--ntasks-per-node=1", "--time=1", "--signal=URG@1"]
    words = ["--set", "training.epochs=100000", "--set", "training.keep_latest=1"]
    job = Submitted(cluster, tmp_path, *flags, words=words, ENGINE="fsdp")
    cluster.until(lambda: "Stopped (time limit) after step" in job.log, "stopped by itself", job=job.id)
    cluster.until(lambda: len(starts_of(job)) == 2, "goes on")
    assert job.restarts() == 1
    stopped = int(re.search(r"Stopped \(time limit\) after step (\d+)", job.log)[1])
    assert stopped > 0, "a minute is enough to train"
    assert [start["step"] for start in starts_of(job)] == [0, stopped]
    cluster.call("scancel", job.id)
    cluster.until(lambda: cluster.call("squeue", "-h", "-j", job.id) == "", "gone")


def starts_of(job: Submitted) -> list[dict[str, int]]:
    """Of the newest save; it may be on its way out."""
    try:
        return json.loads((job.folder / "latest" / "state.json").read_text())["starts"]
    except FileNotFoundError:
        return []


# -- what the script makes of a request ----------------------------------------------------------


def echoed(cluster: Cluster, root: Path, *words: str, **env: str) -> str:
    """The log of a job whose Python is `echo`: it shows the words that launch/train.py would get."""
    env = {"PYTHON": "echo", "CHECKPOINT_DIR": str(root / "run")} | env
    job = cluster.submit(f"--output={root}/%j.log", *words, **env)
    cluster.finish(job)
    return (root / f"{job}.log").read_text()


def test_words_and_variables_reach_the_run(cluster, tmp_path):
    log = echoed(
        cluster, tmp_path, SCRIPT, "--epochs", "3", "--set", "wandb run=a b",
        CONFIG="demo", ENGINE="ddp", CONTAINER="env INSIDE=1", SRUN_ARGS="--label",
    )  # fmt: skip
    run = tmp_path / "run"
    assert (
        f"0: launch/train.py --checkpoint-dir {run} --resume auto --config demo --engine ddp "
        "--epochs 3 --set wandb run=a b\n" in log
    )
    assert "--ds ds_configs/zero2.json --epochs" in echoed(cluster, tmp_path, SCRIPT, "--epochs", "3")
    assert "zero2" not in echoed(cluster, tmp_path, SCRIPT, "--engine", "fsdp")


def test_every_task_of_an_array_has_its_own_folder(cluster, tmp_path):
    for name in ("launch", "slurm"):
        (tmp_path / name).symlink_to(ROOT / name)  # the default folder lies in the project's
    flags = ["--array=3,5", f"--chdir={tmp_path}", "--job-name=sweep", f"--output={tmp_path}/%a.log"]
    job = cluster.submit(*flags, SCRIPT, PYTHON="echo")
    cluster.until(lambda: not cluster.call("squeue", "-h", "-j", job), "gone")
    for task in (3, 5):
        assert f"--checkpoint-dir checkpoints/sweep-{job}_{task} " in (tmp_path / f"{task}.log").read_text()


def test_a_warning_during_start_up_requeues_that_task_alone(cluster, tmp_path):
    """Before there are handlers the signal kills. The array's last task bears the array's own number."""
    program = tmp_path / "program"
    program.write_text(
        f"""#!/bin/sh
        echo "start ${{SLURM_RESTART_COUNT:-0}}" >> {tmp_path}/starts-$SLURM_ARRAY_TASK_ID
        [ -n "$SLURM_RESTART_COUNT" ] && exit 0
        while [ ! -e {tmp_path}/end ]; do sleep 0.2; done
        """
    )
    program.chmod(0o755)
    flags = ["--array=0-1", f"--output={tmp_path}/%a.log"]
    job = cluster.submit(*flags, SCRIPT, PYTHON=str(program), CHECKPOINT_DIR=str(tmp_path / "run"))
    first, last = tmp_path / "starts-0", tmp_path / "starts-1"
    cluster.until(lambda: first.exists() and last.exists(), "both tasks run")
    cluster.call("scancel", "--batch", "--signal=USR1", f"{job}_1")
    cluster.until(lambda: last.read_text() == "start 0\nstart 1\n", "the last task runs again")
    (tmp_path / "end").touch()
    cluster.until(lambda: not cluster.call("squeue", "-h", "-j", job), "gone")
    assert first.read_text() == "start 0\n"
    assert cluster.job(f"{job}_1")["JobState"] == cluster.job(f"{job}_0")["JobState"] == "COMPLETED"


def test_a_failing_run_fails_the_job_with_its_code(cluster, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    job = cluster.submit(
        f"--output={tmp_path}/log", SCRIPT, PYTHON=str(program), CHECKPOINT_DIR=str(tmp_path)
    )
    fields = cluster.finish(job)
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", "7:0", "0")


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--partition=nope", "invalid partition specified: nope"),
        ("--nodes=3", "Node count specification invalid"),  # there are two
    ],
)
def test_what_the_cluster_lacks_is_refused_at_once(cluster, flag, reason):
    command = ["sbatch", flag, SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=cluster.env, cwd=ROOT)
    assert done.returncode == 1
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("flags", "words", "env", "line"),
    [
        ([], ["--input-dir", "/no/such"], {}, "error: /no/such: no such folder (data.input_dir)"),
        ([], [], {"CHECKPOINT_DIR": "/dev/null/run"}, "error: CHECKPOINT_DIR=/dev/null/run: cannot be written to"),
        ([], ["--checkpoint-dir", "x"], {}, "error: name the run's folder by CHECKPOINT_DIR=FOLDER"),
        (["--chdir=/"], [], {}, "error: / is not the project's folder; submit there, or sbatch --chdir=FOLDER"),
        ([], [], {"PYTHON": "python0"}, "error: no python0 on node1; set VENV, MODULES, PYTHON or CONTAINER"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line(cluster, tmp_path, flags, words, env, line):
    job = Submitted(cluster, tmp_path, *flags, words=words, **{"ENGINE": "single"} | env)
    fields = cluster.finish(job.id)
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "2:0")
    errors = [found for found in job.log.splitlines() if "error" in found and "srun" not in found]
    assert len(errors) == 1 and errors[0].startswith(line), job.log


@pytest.mark.parametrize("hidden", ["data", "run"])
def test_what_one_node_lacks_is_named_with_the_node(cluster, tmp_path, hidden):
    """An empty, read-only file system lies over the folder on node2, before anything is trained."""
    renders, _ = train_runs.tiny_set()
    folder = renders if hidden == "data" else tmp_path / "run"
    folder.mkdir(exist_ok=True)
    cluster.inside("node2", "mount", "-t", "tmpfs", "-o", "ro", "none", folder)
    try:
        job = Submitted(cluster, tmp_path, "--nodes=2", "--ntasks-per-node=1", ENGINE="fsdp")
        fields = cluster.finish(job.id)
    finally:
        cluster.inside("node2", "umount", folder)
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "2:0") and "Samples: " not in job.log
    (error,) = [line for line in job.log.splitlines() if line.startswith("error: ")]
    if hidden == "data":
        assert "the data set has faults, nothing was trained" in error
        assert f"{folder}/clean/sample_0000/1.png: No such file or directory (on node2)" in job.log
    else:
        assert error.startswith(
            f"error: node2 cannot write to {folder}/slurm-{job.id}: CHECKPOINT_DIR must lie"
        )
