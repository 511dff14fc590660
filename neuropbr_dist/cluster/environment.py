"""Rank and world size: one place that reads them, whoever started the process."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from neuropbr_dist.errors import UserError

TORCH_STYLE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = (
    "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID",
    "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE",
)  # fmt: skip
OPEN_MPI = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
JOB_PORTS = range(20_000, 32_000)
"""Below 32768, from where the system gives ports to connections: one of these may hold any port by chance."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Place of this process among the others of the run.

    Raises:
        UserError: a rank is out of range.
    """

    launcher: str
    """deepspeed, torchrun, slurm, mpi, submitit (processes of this machine) or none."""
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    """Ranks on this node."""
    node: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29500

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and 0 <= self.local_rank < max(self.local_world_size, 1)):
            raise UserError(
                f"environment of {self.launcher}: rank {self.rank} of {self.world_size}, "
                f"local rank {self.local_rank} of {self.local_world_size}: out of range"
            )

    @property
    def distributed(self) -> bool:
        """Whether a launcher started this process, be it with one rank."""
        return self.launcher != "none"

    def export(self, env: MutableMapping[str, str]) -> None:
        """Write the torch-style variables, which DeepSpeed reads whoever started us."""
        env.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world_size),
            LOCAL_RANK=str(self.local_rank),
            LOCAL_WORLD_SIZE=str(self.local_world_size),
            MASTER_ADDR=self.master_addr,
            MASTER_PORT=str(self.master_port),
        )


def alone(env: Environment) -> str:
    """Say how to start one process where a launcher has left its variables."""
    if env.launcher == "slurm":
        return "unset SLURM_STEP_ID (a shell of srun has it), or srun --ntasks=1"
    return "start it without the launcher, or unset RANK and WORLD_SIZE"


def detect(env: Mapping[str, str] = os.environ) -> Environment:
    """Detect the launcher: deepspeed / torchrun, then a Slurm step, then MPI, else a single process.

    Raises:
        UserError: a launcher's variables are there in part; names the missing ones.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        return from_torch_style(env)
    # Inside a batch script but outside srun there is no step: that is one process.
    if "SLURM_STEP_ID" in env:
        return from_slurm(env)
    for names in (OPEN_MPI, HYDRA):
        if names[0] in env:
            return from_mpi(env, names)
    return Environment(launcher="none")


def integers(env: Mapping[str, str], names: tuple[str, ...], launcher: str) -> dict[str, int]:
    """Return the whole-number variables of a launcher, all of whose `names` must be set."""
    missing = [name for name in names if not env.get(name)]
    if missing:
        present = [name for name in names if env.get(name)]
        raise UserError(
            f"environment of {launcher} is half set: {', '.join(present)} found, "
            f"{', '.join(missing)} missing; set all of them, or unset them to run as one process"
        )
    text_valued = ("MASTER_ADDR", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
    return {name: number(env, name, launcher) for name in names if name not in text_valued}


def number(env: Mapping[str, str], name: str, launcher: str) -> int:
    """Return `env[name]` as a whole number.

    Raises:
        UserError: it is none.
    """
    if not re.fullmatch(r"\d+", env[name]):
        raise UserError(f"environment of {launcher}: {name} = {env[name]!r}; allowed: a whole number")
    return int(env[name])


def optional_number(env: Mapping[str, str], names: tuple[str, ...], launcher: str) -> int | None:
    """Return the number in the first of `names` that is set; None if none is."""
    found = [name for name in names if env.get(name)]
    return number(env, found[0], launcher) if found else None


def from_torch_style(env: Mapping[str, str]) -> Environment:
    """Read the variables of torchrun or deepspeed.

    Raises:
        UserError: one is missing, no number, or out of range.
    """
    name = "torchrun / deepspeed"
    found = integers(env, TORCH_STYLE, name)
    torchrun = "TORCHELASTIC_RUN_ID" in env
    local = optional_number(env, ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"), name) or found["WORLD_SIZE"]
    node = optional_number(env, ("GROUP_RANK", "CROSS_RANK"), name)
    return Environment(
        launcher="torchrun" if torchrun else "deepspeed",
        rank=found["RANK"],
        world_size=found["WORLD_SIZE"],
        local_rank=found["LOCAL_RANK"],
        local_world_size=local,
        node=found["RANK"] // max(local, 1) if node is None else node,
        master_addr=env["MASTER_ADDR"],
        master_port=found["MASTER_PORT"],
    )


def from_slurm(env: Mapping[str, str]) -> Environment:
    """Read the variables of srun's step.

    Raises:
        UserError: one is missing, no number, or out of range.
    """
    found = integers(env, SLURM, "srun")
    nodes = expand_nodelist(env["SLURM_STEP_NODELIST"])
    counts = expand_counts(env["SLURM_STEP_TASKS_PER_NODE"])
    step = optional_number(env, ("SLURM_STEP_ID",), "srun") or 0
    return Environment(
        launcher="slurm",
        rank=found["SLURM_PROCID"],
        world_size=found["SLURM_STEP_NUM_TASKS"],
        local_rank=found["SLURM_LOCALID"],
        local_world_size=counts[found["SLURM_NODEID"]],
        node=found["SLURM_NODEID"],
        master_addr=env.get("MASTER_ADDR") or nodes[0],
        # Steps of a job may share a node, too.
        master_port=optional_number(env, ("MASTER_PORT",), "srun")
        or job_port(found["SLURM_JOB_ID"] + 7 * step),
    )


def job_port(number: int) -> int:
    """Return the port at which the ranks of job `number` meet: another one for each of the jobs that share a node."""
    return JOB_PORTS[number % len(JOB_PORTS)]


def from_mpi(env: Mapping[str, str], names: tuple[str, ...]) -> Environment:
    """Read the variables `names` of an MPI launcher: rank, size, local rank, local size.

    Raises:
        UserError: one is missing or out of range, or MASTER_ADDR is, on several nodes.
    """
    found = integers(env, names, "mpirun")
    rank, size, local_rank, local_size = (found[name] for name in names)
    if size > local_size and not env.get("MASTER_ADDR"):
        raise UserError("environment of mpirun: several nodes need MASTER_ADDR, the first node's address")
    return Environment(
        launcher="mpi",
        rank=rank,
        world_size=size,
        local_rank=local_rank,
        local_world_size=local_size,
        node=rank // local_size,
        master_addr=env.get("MASTER_ADDR", "127.0.0.1"),
        master_port=optional_number(env, ("MASTER_PORT",), "mpirun") or 29500,
    )


def expand_nodelist(text: str) -> list[str]:
    """Return Slurm's `n[1-3,07],login` as names, in the order of `scontrol show hostnames`."""
    names = re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text)
    return [expanded for name in names for expanded in expand_name(name)]


def expand_name(name: str) -> list[str]:
    """Expand one name with any number of brackets: `rack[0-1]n[1-2]`."""
    head, bracket, rest = name.partition("[")
    if not bracket:
        return [name]
    inside, _, rest = rest.partition("]")
    numbers = []
    for part in inside.split(","):
        low, _, high = part.partition("-")
        numbers += [f"{i:0{len(low)}d}" for i in range(int(low), int(high or low) + 1)]
    return [head + number + tail for number in numbers for tail in expand_name(rest)]


def expand_counts(text: str) -> list[int]:
    """Return Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    counts = []
    for part in text.split(","):
        number, _, times = part.partition("(x")
        counts += [int(number)] * int(times.rstrip(")") or 1)
    return counts
