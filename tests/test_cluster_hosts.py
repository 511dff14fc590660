"""Two hosts with addresses of their own: torchrun and the deepspeed launcher train as one host does."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support import train_runs
from tests.support.hosts import ADDRESSES, NETWORK, Hosts, two_hosts

pytestmark = [pytest.mark.multiprocess, pytest.mark.drill]
PORT, WITHIN_S = 29400, 200
ENGINES = {"fsdp": ["--engine", "fsdp"], "zero2": ["--ds", "ds_configs/zero2.json"]}
SAID = {"fsdp": "Engine: fsdp on 2 x cpu (torchrun launcher)", "zero2": "Engine: deepspeed on 2 x cpu"}


@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as hosts:
        yield hosts


@cache
def on_one_host(engine: str) -> Path:
    folder = train_runs.temporary_folder() / "run"
    ended = train_runs.run(folder, *ENGINES[engine], world=2)
    assert ended.code == 0, ended.err
    return folder


def words(folder: Path, engine: str) -> list[str]:
    return ["launch/train.py", "--checkpoint-dir", str(folder), *ENGINES[engine], *train_runs.tiny_words()]


def finishes(hosts: Hosts, folder: Path, commands: dict[int, list[str]], engine: str, **env: str) -> None:
    """The commands, by host, end well and have trained what one host trains."""
    logs = {host: folder / f"log-{host}" for host in commands}
    processes = [hosts.run(host, command, env, logs[host]) for host, command in commands.items()]
    codes = [process.wait(WITHIN_S) for process in processes]
    said = "".join(log.read_text() for log in logs.values())
    assert codes == [0] * len(codes), said
    assert SAID[engine] in said
    train_runs.assert_same_run(folder / "run", on_one_host(engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_torchrun(hosts, tmp_path, engine):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += [f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}"]
    commands = {h: [*torchrun, f"--node-rank={h}", *words(tmp_path / "run", engine)] for h in (0, 1)}
    finishes(hosts, tmp_path, commands, engine)


def deepspeed(folder: Path, *flags: str) -> list[str]:
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    place = [f"--hostfile={hostfile}", f"--master_addr={ADDRESSES[0]}", f"--master_port={PORT}"]
    return [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        *place,
        *flags,
        *words(folder / "run", "zero2"),
    ]


def test_deepspeed_starts_both_hosts_over_ssh(hosts, tmp_path):
    """Its own way: pdsh and ssh from the first host; variables reach the ranks by a file."""
    hosts.start_sshd()
    variables = {**NETWORK, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    (tmp_path / "env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    env = {"DS_ENV_FILE": str(tmp_path / "env"), "PDSH_SSH_ARGS_APPEND": hosts.ssh_options}
    finishes(hosts, tmp_path, {0: deepspeed(tmp_path, "--no_ssh_check")}, "zero2", **env)


def test_deepspeed_is_started_on_each_host(hosts, tmp_path):
    """Where there is no ssh between hosts."""
    commands = {h: deepspeed(tmp_path, "--no_ssh", f"--node_rank={h}") for h in (0, 1)}
    finishes(hosts, tmp_path, commands, "zero2")


def test_the_doctor_sees_both_hosts(hosts, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += [f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}"]
    flags = ["--doctor", "--checkpoint-dir", str(tmp_path / "run"), *train_runs.tiny_words()]
    logs = [tmp_path / f"log-{h}" for h in (0, 1)]
    processes = [
        hosts.run(h, [*torchrun, f"--node-rank={h}", "launch/submit.py", *flags], out=logs[h]) for h in (0, 1)
    ]
    codes = [process.wait(WITHIN_S) for process in processes]
    said = "".join(log.read_text() for log in logs)
    assert codes == [0, 0], said
    assert "host1" in said and "host2" in said and "2 rank(s) on 2 node(s): all well" in said
    assert "All-reduce of 16 MiB over 2 ranks: " in said
