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
import sys
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 240


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Pool:
    """`world` processes joined in one gloo group."""

    def __init__(self, world: int) -> None:
        context, port = mp.get_context("spawn"), free_port()
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


_pools: dict[int, Pool] = {}


def run(world: int, target: str, **arguments: Any) -> list[Any]:
    """Results of `target` ("module:function") by rank."""
    if world not in _pools:
        _pools[world] = Pool(world)
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
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    sys.path.insert(0, str(ROOT))
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
