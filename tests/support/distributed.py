"""Several processes for tests: pools that stay up, so that imports are paid once a world size.

`run(world, "tests.module:function", **arguments)` calls `function(**arguments)` on
every rank of a gloo group and returns the ranks' results. A rank's error ends the
pool and comes back with that rank's traceback.
"""

from __future__ import annotations

import importlib
import multiprocessing as mp
import os
import socket
import traceback
import warnings
from datetime import timedelta
from functools import cache
from itertools import count
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import SystemRandom
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240
# On CPU whatever the machine has. DeepSpeed reads its variable at import.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


PORTS = range(10_000, 32_000)  # the system gives out others, from 32768
PORTS_EACH = 250
_turns = count(SystemRandom().randrange(PORTS_EACH))


def free_port() -> int:
    """A TCP port for a server to come: no connection is given it by chance, no pytest worker beside this one takes it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    mine = PORTS[worker * PORTS_EACH :][:PORTS_EACH]
    while True:
        port = mine[next(_turns) % PORTS_EACH]
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@cache
def fork_server() -> Any:
    """A process that has imported what the ranks need, and forks them: 5 s saved on each."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preload"])
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)
    return context


class Pool:
    """`world` processes joined in one gloo group."""

    def __init__(self, world: int) -> None:
        context, port = fork_server(), free_port()
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, port, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def call(self, target: str, arguments: dict[str, Any]) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((target, arguments))
        results: dict[int, Any] = {}
        while len(results) < len(self.pipes):
            waiting = [p for i, p in enumerate(self.pipes) if i not in results]
            ready = wait(waiting, timeout=TIMEOUT_S)
            if not ready:
                raise AssertionError(
                    f"{target}: no answer from ranks {sorted(set(range(len(self.pipes))) - set(results))}"
                )
            for pipe in ready:
                rank = self.pipes.index(pipe)  # type: ignore[arg-type]
                ok, value = pipe.recv()  # type: ignore[union-attr]
                if not ok:
                    raise AssertionError(f"{target} failed on rank {rank}:\n{value}")
                results[rank] = value
        return [results[rank] for rank in range(len(self.pipes))]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


_pools: dict[int, Pool] = {}  # the most recently used last
POOLS_KEPT = 2  # a process with DeepSpeed holds about 600 MB


def run(world: int, target: str, **arguments: Any) -> list[Any]:
    """Results of `target` ("module:function") by rank."""
    if world not in _pools and len(_pools) == POOLS_KEPT:
        _pools.pop(next(iter(_pools))).close()
    _pools[world] = _pools.pop(world, None) or Pool(world)
    try:
        return _pools[world].call(target, arguments)
    except BaseException:
        _pools.pop(world).close()
        raise


def close_pools() -> None:
    while _pools:
        _pools.popitem()[1].close()


def _serve(rank: int, world: int, port: int, pipe: Connection) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch and DeepSpeed about each other
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT_S))
    while True:
        target, arguments = pipe.recv()
        module, _, function = target.partition(":")
        try:
            pipe.send((True, getattr(importlib.import_module(module), function)(**arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
            return
