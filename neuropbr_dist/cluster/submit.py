"""A run through submitit: as a Slurm job, as processes of this machine, or in this process."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import submitit

from neuropbr_dist.cluster.environment import Environment, job_port, optional_number
from neuropbr_dist.cluster.stop import StopReason
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import realpath

NEWEST = "latest"
JOB_ID = "%j"  # in a run's folder, as in Slurm's file names
POLL_S = 1.0


class Job:
    """Program of a job, which submitit pickles, and calls on every rank at each start of the job.

    submitit's own handler would save inside the signal, on rank 0 alone: a collective save would hang.
    So the trainer's handlers replace it while it trains: all ranks save at one step boundary and
    `train` returns. Then rank 0 raises the signal for submitit, which finds nothing left to save,
    counts the time-out and requeues.

    Args:
        train: trains in a folder, told whether it holds a save of an earlier start of the job, and returns why it
            stopped, if it did; picklable.
        folder: the run's folder; `%j` in it stands for the job's number.
    """

    def __init__(self, train: Callable[[Path, bool], StopReason | None], folder: str) -> None:
        self.train, self.folder = train, folder
        self.restarted = False

    def __call__(self) -> str:
        """Train; returns the newest checkpoint of the finished run."""
        env = submitit.JobEnvironment()
        number = getattr(signal, f"SIG{env.USR_SIG}")
        submitits = signal.getsignal(number)
        folder = Path(self.folder.replace(JOB_ID, env.job_id))
        if env.cluster == "local":
            local_rank(env, os.environ).export(os.environ)
        if env.cluster != "debug":  # a requeue may have cut a rank's result off
            result = env.paths.result_pickle
            result.with_suffix(result.suffix + ".save_tmp").unlink(missing_ok=True)
        restarted = self.restarted or int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
        reason = self.train(folder, restarted and (folder / NEWEST).exists())
        if env.global_rank == 0 and reason is not None and reason.requeues and still_wanted(env):
            signal.signal(number, submitits)
            signal.raise_signal(number)
        return str(realpath(folder / NEWEST))

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what submitit is to run after the requeue. It asks rank 0 alone; everything is saved by now."""
        again = Job(self.train, self.folder)
        again.restarted = True
        return submitit.helpers.DelayedSubmission(again)


def local_rank(env: submitit.JobEnvironment, variables: Mapping[str, str]) -> Environment:
    """Return the place of a process of this machine; under Slurm it comes from the step.

    submitit's own helper takes a port among those that the system gives to connections, where one may hold it.
    """
    return Environment(
        launcher="submitit",
        rank=env.global_rank,
        world_size=env.num_tasks,
        local_rank=env.local_rank,
        local_world_size=env.num_tasks,
        master_port=optional_number(variables, ("MASTER_PORT",), "submitit") or job_port(int(env.job_id)),
    )


def still_wanted(env: Any) -> bool:
    """Return whether the job is to run again: not in this process, and not if cancelled, which sends SIGTERM as well."""
    if env.cluster == "slurm":
        return slurm_state(env.job_id) == "RUNNING"
    return env.cluster == "local"


def slurm_state(job_id: str, form: str = "%T") -> str:
    """Return RUNNING, PENDING, ... while Slurm has the job in its queue, else empty. `form`: see squeue."""
    command = ["squeue", "--noheader", "--jobs", job_id, "--format", form]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()


# -- submission ----------------------------------------------------------------------------


@dataclass(kw_only=True)
class Request:
    """Resources and limits that a job asks for. None: the cluster's default."""

    executor: Literal["slurm", "local", "debug"]
    name: str = "neuropbr"
    log_dir: Path = Path("submitit")
    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None
    """Ranks a node. None: one per GPU, or one."""
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    minutes: int = 1440
    """Time limit. At the limit the run saves and is requeued."""
    warning_seconds: int = 120
    """The warning signal comes this long before the time limit."""
    max_timeouts: int = 100
    """Requeues after time-outs before submitit gives up."""
    python: str | None = None
    """Command that starts Python on the nodes. None: this interpreter."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the ranks start."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Further sbatch options by long name: partition, account, qos, ..."""


def make_executor(request: Request, project: Path) -> submitit.AutoExecutor:
    """Return the executor with all of `request` set; `project` is put on the ranks' PYTHONPATH.

    Raises:
        UserError: no Slurm here, or more than one node or task where that can't be.
    """
    r = request
    tasks = r.tasks_per_node or r.gpus_per_node or 1
    if r.executor == "slurm" and shutil.which("srun") is None:
        raise UserError(
            "--executor slurm: no srun on PATH; submit from a login node, or use --executor local"
        )
    if r.executor != "slurm" and r.nodes > 1:
        raise UserError(f"--nodes {r.nodes}: --executor {r.executor} has one node, this one")
    if r.executor == "debug" and tasks > 1:
        raise UserError(f"--executor debug runs in this process: one rank, not {tasks}; use --executor local")
    others = os.environ.get("PYTHONPATH")
    paths = f"{project}:{others}" if others else str(project)
    if r.executor != "slurm":
        os.environ["PYTHONPATH"] = paths
    python = {"slurm_python": r.python, "local_python": r.python} if r.python else {}
    made = submitit.AutoExecutor(
        r.log_dir / "%j", cluster=r.executor, slurm_max_num_timeout=r.max_timeouts,
        local_max_num_timeout=r.max_timeouts, **python,
    )  # fmt: skip
    made.update_parameters(
        name=r.name, nodes=r.nodes, gpus_per_node=r.gpus_per_node or None, tasks_per_node=tasks,
        cpus_per_task=r.cpus_per_task, mem_gb=r.mem_gb, timeout_min=r.minutes, stderr_to_stdout=True,
        slurm_signal_delay_s=r.warning_seconds, local_setup=r.setup or None,
        slurm_setup=[*r.setup, f"export PYTHONPATH={shlex.quote(paths)}"],
        slurm_additional_parameters={"requeue": True, **r.sbatch},
        # srun no longer takes the CPUs per task from sbatch.
        slurm_srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={r.cpus_per_task or 1}"],
    )  # fmt: skip
    return made


def send(executor: submitit.AutoExecutor, job: Job) -> submitit.Job:
    """Submit.

    Raises:
        UserError: Slurm refuses the job; with its reasons.
    """
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints the reasons, too
            return executor.submit(job)
    except submitit.core.utils.FailedJobError as error:
        reasons = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines()]
        raise UserError(f"sbatch refused the job: {'; '.join(reasons)}") from error


def sbatch_text(executor: submitit.AutoExecutor) -> str:
    """Return the batch file that submitit would hand to sbatch."""
    inner = executor._executor
    if not isinstance(inner, submitit.SlurmExecutor):
        raise UserError("--dry-run shows the batch file of --executor slurm; the others have none")
    return inner._make_submission_file_text(inner._submitit_command_str, "")


# -- afterwards ------------------------------------------------------------------------------


def log_path(job: submitit.Job) -> Path:
    """Return the file of rank 0's output, over all starts of the job."""
    return Path(job.task(0).paths.stdout)


def cancel_command(job: submitit.Job) -> str:
    """Return the command that a person types to cancel `job`."""
    return f"scancel {job.job_id}" if isinstance(job, submitit.SlurmJob) else f"kill -INT {job.job_id}"


def state_of(job: submitit.Job) -> str:
    """Return RUNNING, or PENDING with Slurm's reason; empty once it has ended for good, which a requeued job hasn't.

    squeue answers also where there is no accounting (sacct).
    """
    if isinstance(job, submitit.SlurmJob):
        state, _, reason = slurm_state(job.job_id, "%T %r").partition(" ")
        return state if reason in ("", "None") else f"{state} ({reason})"
    return "" if job.done() else "RUNNING"


def follow(job: submitit.Job) -> str:
    """Show rank 0's output and each change of the job's state until it has ended; returns the newest checkpoint.

    Raises:
        UserError: the job failed or was cancelled; names its log.
    """
    path, shown, before, state = log_path(job), 0, "", None
    while state != "":
        state = state_of(job)  # before the last look at the log
        if state and state != before:
            print(f"-- {time.strftime('%H:%M:%S')} job {job.job_id}: {state}", flush=True)
            before = state
        if path.exists():
            with path.open(errors="replace") as log:
                log.seek(shown)
                print(log.read(), end="", flush=True)
                shown = log.tell()
        if state:
            time.sleep(POLL_S)
    if not job.task(0).paths.result_pickle.exists():
        raise UserError(f"job {job.job_id} ended without a result; see {path}")
    failure = job.task(0).exception()
    if failure is not None:
        last = str(failure).rpartition("\n-----")[0].strip().splitlines()[-1]
        raise UserError(f"job {job.job_id} failed: {last}; see {path}")
    return job.task(0).result()
