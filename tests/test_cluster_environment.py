"""Rank and world size under every launcher, and environments that are half set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuropbr_dist.cluster import Environment, detect
from neuropbr_dist.cluster.environment import JOB_PORTS, expand_counts, expand_nodelist, job_port
from neuropbr_dist.errors import UserError
from tests.support.distributed import ROOT

DEEPSPEED = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4", "CROSS_RANK": "1",
    "CROSS_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29600",
}  # fmt: skip
TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29600", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
# What sbatch sets in its script's shell: a rank, but no step.
SLURM_BATCH = {
    "SLURM_JOB_ID": "41234", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    "SLURM_NTASKS": "5", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "gpu[07-08]",
}  # fmt: skip
SLURM_STEP = {
    **SLURM_BATCH, "SLURM_PROCID": "3", "SLURM_NODEID": "1", "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "3,2",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "29600",
}  # fmt: skip
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def test_deepspeed_and_torchrun():
    placed = {
        "rank": 5, "world_size": 8, "local_rank": 1, "local_world_size": 4, "node": 1,
        "master_addr": "10.0.0.1", "master_port": 29600,
    }  # fmt: skip
    assert detect(DEEPSPEED) == Environment(launcher="deepspeed", **placed)
    assert detect(TORCHRUN) == Environment(launcher="torchrun", **placed)


def test_torch_style_without_node_variables_is_one_node():
    env = {name: DEEPSPEED[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    found = detect({**env, "LOCAL_RANK": "5"})
    assert (found.local_world_size, found.node) == (8, 0)


def test_slurm_step():
    assert detect(SLURM_STEP) == Environment(
        launcher="slurm", rank=3, world_size=5, local_rank=0, local_world_size=2, node=1,
        master_addr="gpu07", master_port=20000 + 41234 % 12000,
    )  # fmt: skip


def test_slurm_step_takes_a_given_address_and_port():
    found = detect({**SLURM_STEP, "MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "1234"})
    assert (found.master_addr, found.master_port) == ("10.0.0.9", 1234)


def test_jobs_on_one_node_get_their_own_ports():
    ports = {detect({**SLURM_STEP, "SLURM_JOB_ID": str(job)}).master_port for job in range(100, 200)}
    assert len(ports) == 100


def test_an_elastic_job_has_the_same_port():
    rule = f"$(({JOB_PORTS.start} + SLURM_JOB_ID % {len(JOB_PORTS)}))"
    assert f'--rdzv-endpoint="$host:{rule}"' in (ROOT / "slurm" / "elastic.sbatch").read_text()


def test_no_connection_of_the_system_holds_a_jobs_port():
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 <= job_port(number) < min(lowest, 32768) for number in range(30_000))


def test_torchrun_under_srun_is_torchrun():
    assert detect({**SLURM_STEP, **TORCHRUN}).launcher == "torchrun"


def test_a_batch_shell_without_a_step_is_one_process():
    assert detect(SLURM_BATCH) == Environment(launcher="none")


def test_mpi():
    assert detect(OPEN_MPI) == Environment(
        launcher="mpi", rank=3, world_size=4, local_rank=1, local_world_size=2, node=1,
        master_addr="n1", master_port=29600,
    )  # fmt: skip
    assert detect(HYDRA) == Environment(
        launcher="mpi", rank=1, world_size=2, local_rank=1, local_world_size=2
    )


def test_mpi_on_several_nodes_needs_an_address():
    env = {name: value for name, value in OPEN_MPI.items() if name != "MASTER_ADDR"}
    with pytest.raises(UserError, match="several nodes need MASTER_ADDR"):
        detect(env)


def test_nothing_is_one_process():
    assert detect({}) == Environment(launcher="none")
    assert not detect({}).distributed
    assert detect({**HYDRA, "PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0"}).distributed


# -- half-set environments ---------------------------------------------------------------------

REQUIRED = {
    "torchrun": (TORCHRUN, ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]),
    "srun": (
        SLURM_STEP,
        [
            "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID",
            "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE",
        ],
    ),
    "mpirun": (OPEN_MPI, [f"OMPI_COMM_WORLD_{name}" for name in ("SIZE", "LOCAL_RANK", "LOCAL_SIZE")]),
    "mpirun (hydra)": (HYDRA, ["PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("launcher", "missing"), [(name, variable) for name, (_, names) in REQUIRED.items() for variable in names]
)
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_a_missing_variable_is_named(launcher, missing, how):
    env = dict(REQUIRED[launcher][0])
    if how == "absent":
        del env[missing]
    else:
        env[missing] = ""
    with pytest.raises(UserError, match=rf"{launcher.split()[0]}.* is half set: .*, {missing} missing;"):
        detect(env)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({**TORCHRUN, "RANK": "first"}, "RANK = 'first'; allowed: a whole number"),
        ({**TORCHRUN, "WORLD_SIZE": "-2"}, "WORLD_SIZE = '-2'; allowed: a whole number"),
        ({**TORCHRUN, "RANK": "8"}, "rank 8 of 8"),
        ({**SLURM_STEP, "SLURM_LOCALID": "2"}, "local rank 2 of 2"),
        ({**SLURM_STEP, "MASTER_PORT": "any"}, "MASTER_PORT = 'any'; allowed: a whole number"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE = 'x'; allowed: a whole number"),
    ],
)
def test_impossible_values_are_named(env, message):
    with pytest.raises(UserError, match=message):
        detect(env)


# -- Slurm's short forms -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [  # as `scontrol show hostnames` prints them
        ("node1", "node1"),
        ("node[1-3]", "node1 node2 node3"),
        ("node[01-03,07]", "node01 node02 node03 node07"),
        ("node[8-11]", "node8 node9 node10 node11"),
        ("node[098-101]", "node098 node099 node100 node101"),
        ("a[1-2],b3,c[4,6]", "a1 a2 b3 c4 c6"),
        ("login,gpu-a100-[1-2]", "login gpu-a100-1 gpu-a100-2"),
        ("n[1-2].cluster.org", "n1.cluster.org n2.cluster.org"),
        ("rack[0-1]n[1-2]", "rack0n1 rack0n2 rack1n1 rack1n2"),
        ("rack[0-1]n[1,3]-ib,x", "rack0n1-ib rack0n3-ib rack1n1-ib rack1n3-ib x"),
    ],
)
def test_nodelists(nodelist, names):
    assert expand_nodelist(nodelist) == names.split()


@pytest.mark.parametrize(
    ("text", "counts"),
    [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,2(x2)", [1, 2, 2]), ("8(x2),4(x1)", [8, 8, 4])],
)
def test_tasks_per_node(text, counts):
    assert expand_counts(text) == counts


# -- for those who read torch-style variables ---------------------------------------------------


def test_export_is_what_detect_reads():
    env: dict[str, str] = {}
    found = detect(SLURM_STEP)
    found.export(env)
    again = detect(env)
    assert again == Environment(**{**found.__dict__, "launcher": "deepspeed"})


@pytest.mark.drill
def test_detects_a_real_launcher():
    """Under torchrun; two processes print what they found."""
    code = "from neuropbr_dist.cluster import detect; e = detect(); print(e.launcher, e.rank, e.world_size, e.local_world_size)"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "--no-python", sys.executable, "-c", code],
        capture_output=True, text=True, timeout=100, env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert sorted(done.stdout.splitlines()) == ["torchrun 0 2 2", "torchrun 1 2 2"], done.stderr
