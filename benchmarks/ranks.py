"""Measurements that run in launches of their own: started on free GPUs, logged, ended at a limit."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from neuropbr_dist.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.2
LATE = "over its time limit"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One script on a number of ranks of this machine, by torchrun."""

    name: str
    """Of its log."""
    argv: Sequence[str]
    """The script and its arguments."""
    ranks: int
    """As many GPUs."""
    nodes: int = 1
    """The ranks stand as this many nodes of equally many ranks."""

    def command(self, node: int, port: int) -> list[str]:
        each = self.ranks // self.nodes
        place = [f"--nnodes={self.nodes}", f"--node-rank={node}", f"--nproc-per-node={each}"]
        meeting = ["--master-addr=127.0.0.1", f"--master-port={port}"]
        return [sys.executable, "-m", "torch.distributed.run", *place, *meeting, *self.argv]


class Running:
    """A launch that has begun: one torchrun a node, each seeing its own GPUs."""

    def __init__(self, launch: Launch, gpus: Sequence[int], log: Path, limit_s: float) -> None:
        self.launch, self.gpus, self.log = launch, gpus, log
        self.ends, self.late = time.monotonic() + limit_s, ""
        self.processes: list[subprocess.Popen] = []
        each, port = launch.ranks // launch.nodes, free_port()
        with log.open("w") as out:
            for node in range(launch.nodes):
                mine = gpus[node * each : (node + 1) * each]
                self.processes.append(
                    subprocess.Popen(
                        launch.command(node, port),
                        env=environment(CUDA_VISIBLE_DEVICES=",".join(map(name_of_gpu, mine))),
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C comes to it by `kill`, once
                    )
                )

    def fault(self) -> str | None:
        """Return None while it runs; then what was wrong, or "" if nothing was.

        At its limit torchrun is told to end: it tells its ranks, a run of `launch/train.py` saves, and kills them in time.
        """
        codes = [p.poll() for p in self.processes]
        if any(code for code in codes):  # a node that has failed leaves the others waiting for it
            self.kill()
            return self.late or f"ended with code {next(filter(None, codes))}: {error_in(self.log)}"
        if all(code == 0 for code in codes):
            return self.late
        if time.monotonic() > self.ends and not self.late:
            self.late = f"{LATE}: {error_in(self.log)}"
            for process in self.processes:
                process.terminate()
        return None

    def kill(self) -> None:
        """By torchrun, which ends its ranks: they are no part of its process group."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, as of `timeout` or a batch system, end this process as an exception does: what it started ends with it.

    In the main thread, which alone may say what signals do.
    """

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@ended_by_sigterm()
def run_all(
    launches: Sequence[Launch],
    gpus: Sequence[int],
    logs: Path,
    done: Callable[[Launch, str], None],
    limit_s: float,
) -> None:
    """Run `launches`, each as soon as enough of `gpus` are free; several at a time if they fit.

    Args:
        gpus: their indices; one that is listed twice takes two launches at a time.
        logs: folder of their output.
        done: called with each launch that has ended and what was wrong ("": nothing).
        limit_s: a launch that takes longer is killed.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, free = list(launches), list(gpus)
    running: list[Running] = []
    try:
        while waiting or running:
            for launch in list(waiting):
                taken = sorted(set(free))[: launch.ranks]
                if len(taken) == launch.ranks:
                    for gpu in taken:
                        free.remove(gpu)
                    running.append(Running(launch, taken, logs / f"{launch.name}.log", limit_s))
                    waiting.remove(launch)
                elif launch.ranks > len(set(gpus)):
                    waiting.remove(launch)
                    done(launch, f"needs {launch.ranks} GPUs, {len(set(gpus))} here")
            for one in list(running):
                if (fault := one.fault()) is not None:
                    running.remove(one)
                    free += one.gpus
                    done(one.launch, fault)
            time.sleep(POLL_S)
    finally:
        for one in running:
            one.kill()


@ended_by_sigterm()
def run_alone(argv: Sequence[str], **variables: str) -> None:
    """One Python process to its end; it ends with this one.

    Args:
        argv: after the interpreter.
        variables: of its environment.

    Raises:
        UserError: it failed; with its last lines.
    """
    with subprocess.Popen(
        [sys.executable, *argv], env=environment(**variables),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            said, _ = process.communicate()
        finally:
            process.terminate()  # nothing, where it has ended; a torchrun ends its ranks
    if process.returncode:
        raise UserError("the measured run failed:\n" + "\n".join(said.splitlines()[-15:]))


def name_of_gpu(index: int) -> str:
    """What this process's `index`-th GPU is called in CUDA_VISIBLE_DEVICES, which may hide others from it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)


def environment(**variables: str) -> dict[str, str]:
    """This process's, with `variables`, and this clone of the package wherever it runs."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path} | variables


def error_in(log: Path) -> str:
    """The first error that a rank has raised, or the log's last line."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [
        line for line in lines if re.match(r"(\[rank\d+\]: )?([\w.]*(Error|Exception)\b|error: )", line)
    ]
    return (errors[:1] or lines[-1:] or ["no output"])[0].strip()[:300]


def free_port() -> int:
    """A TCP port of this machine that was free just now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
