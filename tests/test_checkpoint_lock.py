"""One run a folder: the lock refuses a second run, outlives nothing, and sees runs on other machines."""

import errno
import fcntl
import json
import os
import threading
from pathlib import Path

import pytest

from neuropbr_dist.checkpoint import RunLock
from neuropbr_dist.errors import UserError
from tests.support.distributed import fork_server

BEAT = 0.05
FOREIGN = {"id": "1", "host": "node7", "machine": "another boot", "pid": 42, "since": "2026-01-01", "beat": 0}


def hold(folder: Path, pipe) -> None:
    with RunLock(folder):
        pipe.send(os.getpid())
        pipe.recv()


def holder(folder: Path):
    context = fork_server()
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(folder, theirs))
    process.start()
    return process, ours, ours.recv()


def test_a_second_run_is_refused_and_the_first_named(tmp_path):
    process, pipe, pid = holder(tmp_path)
    for _ in range(2):  # a refusal must not disturb the owner
        with pytest.raises(
            UserError, match=rf"{tmp_path.name} is in use .* host .*, pid {pid}, since 2\d\d\d-"
        ):
            RunLock(tmp_path).__enter__()
    pipe.send("end")
    process.join()
    with RunLock(tmp_path) as lock:
        lock.check()


def test_a_killed_owner_on_this_machine_leaves_no_trace(tmp_path):
    process, _, pid = holder(tmp_path)
    process.kill()
    process.join()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == pid
    with RunLock(tmp_path, beat_seconds=1e9):  # watching would never end
        pass


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    lock = RunLock(tmp_path).__enter__()
    reader, writer = os.pipe()
    forked, started = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.write(started, b".")  # what it does on its way out of fork is done
        os.read(reader, 1)  # until the parent is done
        os._exit(0)
    os.read(forked, 1)
    lock.release()
    with RunLock(tmp_path):
        pass
    os.close(writer)
    os.waitpid(child, 0)
    for end in (reader, forked, started):
        os.close(end)


def write_record(folder: Path, record: dict) -> None:
    """One small write in place, as a run's own beat is; a truncated file would read as a release."""
    path = folder / "run.lock"
    path.touch()
    with path.open("r+b", buffering=0) as file:
        file.write(json.dumps(record).encode().ljust(512))


@pytest.fixture
def foreign_run(tmp_path):
    """The record of a run on another machine, beating, on a file system whose locks stay on their machine."""
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(BEAT):
            count += 1
            write_record(tmp_path, FOREIGN | {"beat": count})

    thread = threading.Thread(target=beat)
    write_record(tmp_path, FOREIGN)
    thread.start()
    yield
    stop.set()
    thread.join()


def test_a_living_run_on_another_machine_is_refused(tmp_path, foreign_run):
    with pytest.raises(UserError, match="host node7, pid 42, since 2026-01-01"):
        RunLock(tmp_path, beat_seconds=2 * BEAT).__enter__()


def test_a_dead_run_on_another_machine_is_replaced(tmp_path):
    write_record(tmp_path, FOREIGN)
    with RunLock(tmp_path, beat_seconds=BEAT):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_a_file_system_without_locks_goes_by_the_record(tmp_path, monkeypatch, foreign_run):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="host node7"):
        RunLock(tmp_path, beat_seconds=2 * BEAT).__enter__()


def test_a_run_that_lost_its_folder_is_told(tmp_path):
    with RunLock(tmp_path, beat_seconds=BEAT) as lock:
        write_record(tmp_path, FOREIGN)
        lock._thread.join(10)  # the beat that finds it
        with pytest.raises(UserError, match=r"taken over by host node7"):
            lock.check()
    assert json.loads((tmp_path / "run.lock").read_text()) == FOREIGN


def test_a_folder_that_was_replaced_is_not_this_runs(tmp_path):
    with RunLock(tmp_path / "run") as lock:
        lock.check()
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(UserError, match=r"run was renamed, deleted or replaced under this run"):
            lock.check()
        with RunLock(tmp_path / "run"), pytest.raises(UserError, match="renamed"):
            lock.check()
    assert not (tmp_path / "moved/run.lock").read_text()


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder"])
def test_what_lies_in_the_locks_place_is_left_alone(tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place = tmp_path / "run/run.lock"
    place.parent.mkdir()
    make = {
        "link": lambda: place.symlink_to(victim), "hard link": lambda: place.hardlink_to(victim),
        "pipe": lambda: os.mkfifo(place), "folder": place.mkdir,
    }  # fmt: skip
    make[kind]()
    with pytest.raises(UserError, match=r"run\.lock: (can't be|not a) lock"), RunLock(tmp_path / "run"):
        pass
    assert victim.read_text() == "precious"
