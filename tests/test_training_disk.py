"""A run whose folder is taken, full or not to be written to says so, ends with exit code 2, and loses nothing."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

import psutil
import pytest

from tests.drills.kill import WAIT_S, newest_step, saves, wait_until
from tests.support.disks import real_disk, remount, repair, small_disk
from tests.support.train_runs import Launch, command, start

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.drill,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]

LONG = {
    "training__epochs": 10_000,
    "training__val_every_n_epochs": 10_000,
    "training__save_every_n_epochs": 10_000,
    "training__save_every_n_steps": 1,
    "training__keep_latest": 10_000,
}


def started(folder: Path, world: int = 2) -> Launch:
    """A run without end that has saved twice."""
    launch = start(folder, world=world, **LONG)
    wait_until(launch, lambda: len(saves(folder)) >= 2)
    return launch


def assert_ended(launch: Launch, folder: Path, reason: str) -> None:
    """All ranks have left with exit code 2 and one line each; the last save is whole and can be gone on from."""
    ended = launch.wait()
    assert [process.exitcode for process in launch.processes] == [2] * len(launch.processes), ended.err
    errors = ended.err.splitlines()
    assert len(errors) == len(launch.processes) and all(reason in line for line in errors), ended.err


def assert_goes_on(folder: Path) -> None:
    step = newest_step(folder)
    assert step >= 2
    ended = command("--resume", "auto", "--checkpoint-dir", folder, "--stop-after-steps", step + 2)
    assert ended.code == 0, ended.err
    assert newest_step(folder) == step + 2


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 4 MiB: room for some saves."""
    with small_disk(tmp_path / "disk", "4m") as folder:
        yield folder


def test_full_disk(disk):
    launch = started(disk / "run")
    assert_ended(launch, disk / "run", "No space left on device")
    remount(disk, "size=8m")
    assert_goes_on(disk / "run")


def test_a_disk_fails_and_turns_read_only(tmp_path):
    """What Linux does with a file system of which a write has failed; files that weren't flushed may be empty then."""
    with real_disk(tmp_path / "disk") as disk:
        launch = started(disk / "run")
        remount(disk, "abort")
        assert_ended(launch, disk / "run", "was ")
        repair(disk)
        (disk / "run" / "headers-0.json").write_bytes(b"")
        assert_goes_on(disk / "run")


def test_a_file_outgrows_what_is_allowed(tmp_path):
    """As under a quota: the write itself fails, and it does so on one rank only."""
    launch = started(tmp_path)
    allow_files_of(1000, launch.processes[1].pid)
    assert_ended(launch, tmp_path, "File too large")
    assert_goes_on(tmp_path)


def test_log_can_not_be_written(tmp_path):
    """Known to rank 0 alone; all ranks save once more, then end."""
    launch = started(tmp_path)
    log, earlier, wrong = tmp_path / "metrics.jsonl", tmp_path / "earlier", tmp_path / "wrong"
    os.link(log, earlier)
    wrong.symlink_to(tmp_path)
    os.replace(wrong, log)
    assert_ended(launch, tmp_path, "metrics.jsonl: can't be written: Too many levels of symbolic links")
    os.replace(earlier, log)
    assert_goes_on(tmp_path)


def allow_files_of(size: int, pid: int) -> None:
    """No file may grow past `size` bytes any more."""
    psutil.Process(pid).rlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.fixture
def write_protect() -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only, for root too; undone afterwards."""
    as_root, protected = os.geteuid() == 0, []

    def protect(folder: Path) -> None:
        words = ["chattr", "+i"] if as_root else ["chmod", "a-w"]
        if subprocess.run([*words, folder], capture_output=True).returncode:
            pytest.skip("root can write everywhere on this file system")
        protected.append(folder)

    def unprotect() -> None:
        for folder in protected:
            subprocess.run([*(["chattr", "-i"] if as_root else ["chmod", "u+w"]), folder], check=True)

    protect.undo = unprotect  # type: ignore[attr-defined]
    yield protect
    unprotect()


def test_folder_turns_read_only(tmp_path, write_protect):
    folder = tmp_path / "run"
    launch = started(folder)
    write_protect(folder)
    assert_ended(launch, folder, "Operation not permitted" if os.geteuid() == 0 else "Permission denied")
    write_protect.undo()
    assert_goes_on(folder)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory) -> Iterator[tuple[Launch, Path]]:
    folder = tmp_path_factory.mktemp("first") / "run"
    launch = started(folder, world=1)
    yield launch, folder
    launch.process.kill()
    launch.wait()


@pytest.mark.parametrize("words", [[], ["--resume", "auto"], ["--overwrite"]], ids=str)
def test_second_run_in_one_folder_is_refused(first_run, words):
    launch, folder = first_run
    before = newest_step(folder)
    second = start(folder, *words).wait()
    assert second.code == 2
    assert len(second.err.splitlines()) == 1
    for named in (str(folder), f"pid {launch.process.pid}", "--checkpoint-dir"):
        assert named in second.err
    assert launch.process.is_alive() and newest_step(folder) >= before


def test_of_two_runs_started_at_once_one_is_refused(tmp_path):
    launches = [start(tmp_path, **LONG) for _ in range(2)]
    ready = wait([launch.process.sentinel for launch in launches], timeout=WAIT_S)
    refused, other = sorted(launches, key=lambda launch: launch.process.sentinel not in ready)
    assert refused.wait().code == 2
    wait_until(other, lambda: bool(saves(tmp_path)))
    other.process.kill()
    other.wait()
