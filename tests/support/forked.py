"""Programs in processes that are forked with everything imported: 0.1 s each, where a new interpreter takes 5."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

from tests.support.distributed import ROOT, fork_server, free_port

TIMEOUT_S = 240
TRAIN = "from neuropbr_dist.commands.train import run\nrun()\n"


class Ended(NamedTuple):
    """A launch that is over: exit code of the last rank to fail (or 0), what all ranks printed."""

    code: int
    out: str
    err: str


class Launch:
    """A program under way, as `world` processes with a launcher's environment (one: none).

    Args:
        words: `sys.argv[1:]`.
        program: Python text, as after `python -c`.
        cwd: None: this process's.
    """

    def __init__(
        self,
        words: Sequence[str],
        world: int = 1,
        env: Mapping[str, str] | None = None,
        program: str = TRAIN,
        cwd: Path | None = None,
    ) -> None:
        self.folder, self.processes = Path(mkdtemp(prefix="neuropbr-test-")), []
        port = str(free_port())
        for rank in range(world):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            place = {key: str(value) for key, value in ranks.items()} if world > 1 else {}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if world > 1 else {}
            arguments = (program, list(words), place | dict(env or {}), cwd or Path.cwd(), self.folder)
            process = fork_server().Process(target=_main, args=arguments)
            process.start()
            self.processes.append(process)

    @property
    def process(self) -> BaseProcess:
        return self.processes[0]

    def said(self, stream: str = "out") -> str:
        path = self.folder / stream
        return path.read_text() if path.exists() else ""

    def wait(self) -> Ended:
        for process in self.processes:
            process.join(TIMEOUT_S)
            if process.is_alive():
                process.kill()
        ended = Ended(max(abs(p.exitcode or 0) for p in self.processes), self.said("out"), self.said("err"))
        shutil.rmtree(self.folder)
        return ended


def call(
    program: str, *words: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Ended:
    """Run Python text to its end, as `python -c` does."""
    return Launch([str(word) for word in words], env=env, program=program, cwd=cwd).wait()


def _main(program: str, words: list[str], env: dict[str, str], cwd: Path, folder: Path) -> None:
    os.environ.update(env)
    os.chdir(cwd)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
    multiprocessing.set_start_method("fork", force=True)  # as outside a fork server
    sys.path.insert(0, str(ROOT))
    sys.argv = ["-c", *words]
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
