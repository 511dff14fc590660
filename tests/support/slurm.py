"""A private Slurm cluster on this machine: its own munge key, ports, state and spool, gone at the end.

Every node is a `slurmd` in its own mount, host name and process namespaces, so that
`hostname` says `node1` and a node's death takes all of its processes along.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import psutil

from tests.support.distributed import ROOT, free_port
from tests.support.needs import lacking, search_path, skip_or_fail

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare", "nsenter", "setpriv")
REQUIRE = "NEUROPBR_REQUIRE_SLURM"
CALL_S = 60  # one client call; with the controller down a client waits for ever
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
# Two GPUs a node in Slurm's eyes: it wants character devices, and gives out their numbers only.
GPU_FILES = ("/dev/zero", "/dev/full")

SLURM_CONF = """
ClusterName=neuropbr-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# Slurm requeues a job no sooner than its credential has expired: 2 minutes by default.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
MpiDefault=none
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# More CPUs and memory than the machine has are fine.
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
EnforcePartLimits=ALL
ReturnToService=2
JobRequeue=1
KillWait=20
SlurmdTimeout=10
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why a cluster can't be started here."""
    debian = "slurmctld slurmd slurm-client munge util-linux"
    return lacking(PROGRAMS, debian, ("--mount", "--uts", "--pid", "--fork"))


class Cluster:
    """`nodes` nodes (node1, node2, ...) of `cpus` CPUs and two GPUs by name."""

    def __init__(self, nodes: int = 2, cpus: int = 4) -> None:
        self.nodes = [f"node{i + 1}" for i in range(nodes)]
        self.cpus = cpus
        # Not pytest's folder: munge wants a short path that everyone may enter.
        self.folder = Path(mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {**os.environ, "SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": search_path()}

    # -- up and down -----------------------------------------------------------------------

    def start(self) -> None:
        self.write_files()
        munge = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self.spawn("munged", ["munged", "--foreground", f"--socket={self.folder}/munge.sock", *munge])
        self.until(lambda: (self.folder / "munge.sock").exists(), "munged is up")
        self.spawn("slurmctld", ["slurmctld", "-D"])
        self.until(lambda: "is UP" in self.call("scontrol", "ping", check=False), "slurmctld is up")
        for node in self.nodes:
            self.start_node(node)
        self.until(
            lambda: (
                self.call("sinfo", "-h", "-N", "-p", "debug", "-o", "%T").split()
                == ["idle"] * len(self.nodes)
            ),
            "all nodes are idle",
        )

    def write_files(self) -> None:
        host, port = socket.gethostname().split(".")[0], free_port()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        (self.folder / "state").mkdir()
        config = SLURM_CONF.format(host=host, port=port, folder=self.folder)
        hosts = ["127.0.0.1 localhost", f"127.0.0.1 {host}"]
        for i, node in enumerate(self.nodes):
            (self.folder / f"spool-{node}").mkdir()
            config += (
                f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.{11 + i} Port={free_port()} "
                f"CPUs={self.cpus} RealMemory=64000 Gres=gpu:{len(GPU_FILES)} State=UNKNOWN\n"
            )
            hosts.append(f"127.0.0.{11 + i} {node}")
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={file}\n" for file in GPU_FILES))
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")

    def spawn(self, name: str, command: list[str]) -> None:
        """A daemon that dies with this process, however that ends."""
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.env,
            )  # fmt: skip

    def start_node(self, node: str) -> None:
        inside = f"hostname {node}; mount --bind {self.folder}/hosts /etc/hosts; exec slurmd -D -N {node}"
        namespaces = ["--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.spawn(node, ["unshare", *namespaces, "bash", "-c", inside])

    def inside(self, node: str, *command: str | Path) -> None:
        """Run a command where the node's processes run: a mount there is no other node's."""
        (first,) = psutil.Process(self.daemons[node].pid).children()
        subprocess.run(["nsenter", f"--target={first.pid}", "--mount", *map(str, command)], check=True)

    def lose_node(self, node: str) -> None:
        """The node dies with all of its processes; `start_node` brings it back."""
        self.daemons[node].kill()
        self.daemons.pop(node).wait()

    def stop(self) -> None:
        for daemon in reversed(self.daemons.values()):
            daemon.kill()  # a node's namespace goes with its first process
            daemon.wait()
        shutil.rmtree(self.folder)

    # -- for tests -------------------------------------------------------------------------

    def call(self, *command: str, check: bool = True, **options: object) -> str:
        """What a client program printed (stdout, then stderr)."""
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CALL_S, env=self.env, **options
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout + done.stderr

    def submit(self, *words: str | Path, **env: str) -> str:
        """`sbatch` with these words in the project's folder and `env` on top; returns the job's id."""
        done = subprocess.run(
            ["sbatch", "--parsable", *map(str, words)],
            capture_output=True, text=True, timeout=CALL_S, cwd=ROOT, env={**self.env, **env},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """Fields of `scontrol show job`."""
        words = self.call("scontrol", "-o", "show", "job", job).split()
        return dict(word.partition("=")[::2] for word in words)

    def until(self, met: Callable[[], bool], what: str, within: float = 120, job: str | None = None) -> None:
        """Wait for `met()`; fails with the logs after `within` seconds or when `job` has ended before."""
        end = time.monotonic() + within
        while not met():
            over = job is not None and self.job(job)["JobState"] in ENDED
            if (over and not met()) or time.monotonic() > end:
                raise AssertionError(
                    f"{'job over' if over else 'waited'}, but never: {what}\n{self.report(job)}"
                )
            time.sleep(0.2)

    def finish(self, job: str, within: float = 240) -> dict[str, str]:
        """The job's fields once it has ended."""
        self.until(lambda: self.job(job)["JobState"] in ENDED, f"job {job} has ended", within)
        return self.job(job)

    def report(self, job: str | None = None) -> str:
        """The last lines of the daemons' logs, of the job's own, and of its ranks'."""
        files = sorted(self.folder.glob("*.log"))
        if job is not None:
            out = Path(self.job(job)["StdOut"])
            files += [out, *sorted(out.parent.rglob("rank_*.log"))]
        texts = [f"== {file}\n" + file.read_text()[-2000:] for file in files if file.exists()]
        return "\n".join(texts)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Skips where Slurm is missing; NEUROPBR_REQUIRE_SLURM=1 makes that a failure."""
    skip_or_fail("Slurm", missing(), REQUIRE)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


# -- runs that wait at a step -------------------------------------------------------------------

# A custom loss is the user's own code inside a step. Every rank stops in it until the test says go.
GATE = """
import os, time
from pathlib import Path
from neuropbr_dist.objectives import register_loss

here, calls = Path(__file__).parent, 0

@register_loss("gate")
def gate(pred, target):
    global calls
    calls += 1
    if calls == 8:
        (here / ("waiting-" + os.environ["RANK"])).write_text(str(os.getpid()))
        while not (here / "open").exists():
            time.sleep(0.05)
    return 0 * pred.mean((1, 2, 3))
"""


class Gate:
    """A loss that holds each rank in its seventh step or so of the first life."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "gate"
        self.folder.mkdir()
        (self.folder / "gate.py").write_text(GATE)

    @property
    def words(self) -> list[str]:
        return ["--set", f"loss.custom_module={self.folder}/gate.py", "--set", "loss.custom={gate: 1.0}"]

    def reached(self, ranks: int) -> bool:
        return len(list(self.folder.glob("waiting-*"))) == ranks

    def process(self, rank: int) -> str:
        """Its number inside its node."""
        return (self.folder / f"waiting-{rank}").read_text()

    def open(self) -> None:
        (self.folder / "open").touch()
