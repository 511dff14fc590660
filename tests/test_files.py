"""Files on disks that are full, under writers that are stopped, and logs that a crash has torn: all of it real."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neuropbr_dist.checkpoint.tensor_file import TensorFile, write_tensor_file
from neuropbr_dist.data.builtin import BuiltinCache, fill, generate
from neuropbr_dist.data.builtin.cache import VERSION
from neuropbr_dist.data.files.png import encoded
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import (
    JsonLines,
    check_links,
    read_text,
    remove_leftovers,
    replacing,
    replacing_folder,
    require_file,
    sync,
    write_bytes,
    write_json,
    write_text,
)
from neuropbr_dist.inference.relight import write_animation
from neuropbr_dist.inference.upstream import write_whole
from neuropbr_dist.monitor import save_png, take_look
from neuropbr_dist.monitor.look_files import write_look
from tests.support.disks import remount, small_disk
from tests.support.distributed import ROOT


@pytest.fixture
def full_disk(tmp_path) -> Iterator[Path]:
    """A file system with room for some KiB."""
    with small_disk(tmp_path / "disk", "16k") as folder:
        yield folder


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process may grow past `size` bytes, as under a quota: a write may then be short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- whole or not at all ---------------------------------------------------------------------


def test_a_file_takes_its_place_whole(tmp_path):
    path = tmp_path / "map.png"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".png"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["map.png"]
    write_json(path, {"é": [1, None]}, indent=1)
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, None]}
    with pytest.raises(ValueError):
        write_json(path, float("nan"))
    assert names(tmp_path) == ["map.png"]


def test_a_link_is_replaced_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("somebody's")
    (tmp_path / "config.yaml").symlink_to(elsewhere)
    write_text(tmp_path / "config.yaml", "ours")
    assert elsewhere.read_text() == "somebody's" and not (tmp_path / "config.yaml").is_symlink()


@pytest.mark.parametrize("durable", [False, True])
def test_a_full_disk_keeps_the_old_file_and_nothing_else(full_disk, durable):
    path = full_disk / "config.yaml"
    write_text(path, "old", durable=durable)
    with pytest.raises(OSError) as caught:
        write_text(path, "x" * 100_000, durable=durable)
    assert caught.value.errno == errno.ENOSPC and str(path) in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert path.read_text() == "old" and names(full_disk) == ["config.yaml"]


def test_a_full_disk_leaves_no_half_folder(full_disk):
    def write(folder: Path, size: int) -> None:
        with replacing_folder(folder) as temporary:
            for i in range(4):
                (temporary / f"{i}.png").write_bytes(bytes(size))

    write(full_disk / "step_1", 100)
    with pytest.raises(OSError) as caught:
        write(full_disk / "step_2", 8000)
    assert caught.value.errno == errno.ENOSPC and str(full_disk / "step_2") in str(caught.value)
    assert names(full_disk) == ["step_1"] and len(names(full_disk / "step_1")) == 4


NOISE = np.random.default_rng(0).integers(0, 256, (8, 80, 80), np.uint8)
MAPS = torch.from_numpy(NOISE / np.float32(255))
WRITERS: dict[str, Callable[[Path], object]] = {
    "a.png": lambda path: save_png(path, NOISE.reshape(640, 80)),
    "16_bits.png": lambda path: write_bytes(path, encoded(NOISE.reshape(640, 80).astype(np.uint16) * 99)),
    "relit.webp": lambda path: write_animation(path, MAPS[:, :24, :24], None),
    "a.safetensors": lambda path: write_tensor_file(path, TensorFile("inference", {"w": MAPS}, "", {})),
    "a.pth": lambda path: write_whole(path, {"w": MAPS}),
    "looks": lambda path: write_look(
        path.parent, 0, take_look("clean/a", MAPS[:3, None].expand(3, 3, 80, 80), MAPS, MAPS)
    ),
    f"builtin_v{VERSION}": lambda path: fill([BuiltinCache(path.parent, 1, 80)], [0]),
    "set": lambda path: generate(path, count=1, size=80, seed=1, workers=0, progress=False),
}


@pytest.mark.parametrize("name", WRITERS)
def test_whoever_writes_leaves_nothing_half_on_a_full_disk(full_disk, name):
    """Whole files and folders, or none; the same call goes on once there is room."""
    with pytest.raises((UserError, OSError), match="No space left on device"):
        WRITERS[name](full_disk / name)
    assert list(full_disk.rglob(".*")) == []
    for path in full_disk.rglob("*.png"):
        Image.open(path).load()
    remount(full_disk, "size=4m")
    WRITERS[name](full_disk / name)
    assert names(full_disk) == [name] and list(full_disk.rglob(".*")) == []


def test_a_folder_that_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "wood").mkdir()
    (tmp_path / "wood" / "mine").touch()
    with pytest.raises(OSError) as caught, replacing_folder(tmp_path / "wood") as temporary:
        (temporary / "theirs").touch()
    assert "wood" in str(caught.value) and ".tmp" not in str(caught.value)
    assert names(tmp_path) == ["wood"] and names(tmp_path / "wood") == ["mine"]


def test_an_error_names_the_file_that_was_meant(tmp_path):
    for folder in (tmp_path / "none", tmp_path / "a file"):
        (tmp_path / "a file").touch()
        with pytest.raises(OSError) as caught:
            write_text(folder / "x.json", "")
        assert caught.value.filename == str(folder / "x.json")


def test_writers_at_once_never_share_a_temporary_file(tmp_path):
    """Each rename shows one writer's whole content, and all succeed."""
    path, failures = tmp_path / "report.html", []

    def write(letter: str) -> None:
        try:
            for _ in range(50):
                write_text(path, letter * 10_000)
                assert len(set(path.read_text())) == 1 and path.stat().st_size == 10_000
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and names(tmp_path) == ["report.html"]


WAITING = """
import sys, time
from pathlib import Path
from neuropbr_dist.files import replacing, replacing_folder
with replacing(Path(sys.argv[1]) / "file") as file, replacing_folder(Path(sys.argv[1]) / "folder") as folder:
    file.write_text("half")
    (folder / "half").touch()
    time.sleep(600)
"""


def waiting_writer(folder: Path) -> subprocess.Popen:
    writer = subprocess.Popen([sys.executable, "-c", WAITING, folder], cwd=ROOT, stderr=subprocess.PIPE)
    while not list(folder.glob(".*/half")):
        assert writer.poll() is None
        time.sleep(0.01)
    return writer


def test_ctrl_c_leaves_nothing(tmp_path):
    writer = waiting_writer(tmp_path)
    writer.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in writer.communicate()[1]
    assert names(tmp_path) == []


def test_what_a_killed_writer_left_can_be_removed(tmp_path):
    writer = waiting_writer(tmp_path)
    writer.kill()
    writer.communicate()
    assert len(names(tmp_path)) == 2 and all(name.startswith(".") for name in names(tmp_path))
    (tmp_path / ".hidden.tmp").touch()
    (tmp_path / "wood").mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden.tmp", "wood"]


def test_only_what_is_meant_is_removed(tmp_path):
    left = f".{'0' * 32}.tmp"
    (tmp_path / "wood" / left / left).mkdir(parents=True)  # a folder in a folder
    (tmp_path / f"{left}.html").touch()
    (tmp_path / f"{left}.yaml").touch()
    remove_leftovers(tmp_path, (".yaml", ""))
    assert names(tmp_path) == [f"{left}.html", "wood"] and names(tmp_path / "wood") == [left]
    remove_leftovers(tmp_path, deep=True)
    assert names(tmp_path) == ["wood"] and names(tmp_path / "wood") == []


def test_durable_flushes_the_file_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls = []

    def noted(name, real):
        def call(*arguments):
            where = arguments[0]
            if name == "fsync":
                where = os.readlink(f"/proc/self/fd/{where}")
            calls.append((name, Path(where).name))
            return real(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    write_text(tmp_path / "requeue", "SIGTERM\n", durable=True)
    (_, part), (_, renamed), folder = calls
    assert calls[0] == ("fsync", part) and calls[1] == ("replace", renamed) and part == renamed
    assert part.endswith(".tmp") and folder == ("fsync", tmp_path.name)
    calls.clear()
    write_text(tmp_path / "requeue", "SIGTERM\n")
    assert [name for name, _ in calls] == ["replace"]
    sync(tmp_path)


# -- JSON lines ------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path) -> JsonLines:
    """Three lines."""
    made = JsonLines(tmp_path / "log.jsonl", valid=lambda value: isinstance(value, dict) and "step" in value)
    for step in (1, 2, 3):
        made.append({"step": step, "loss": step / 8})
    return made


def steps(log: JsonLines) -> list[int]:
    return [line["step"] for line in log.read()]


def damage(log: JsonLines, change) -> None:
    log.path.write_bytes(change(log.path.read_bytes()))


def test_lines_come_back_in_order_and_can_be_thinned_out(log):
    assert log.read()[0] == {"step": 1, "loss": 0.125} and steps(log) == [1, 2, 3]
    before = log.path.read_bytes()
    assert [line["step"] for line in log.keep(lambda line: line["step"] != 2)] == [1, 3]
    assert log.path.read_bytes() == b"".join(before.splitlines(keepends=True)[::2])
    written = log.path.stat().st_ino
    assert log.keep(lambda _: True) == log.read() and log.path.stat().st_ino == written
    assert names(log.path.parent) == ["log.jsonl"]


def test_no_file_is_no_lines(tmp_path):
    log = JsonLines(tmp_path / "none")
    assert log.keep(lambda _: True) == log.read() == [] and names(tmp_path) == []


@pytest.mark.parametrize(
    "change, kept, warned",
    [
        (lambda b: b[:-5], [1, 2], ""),  # killed in the middle of a write
        (lambda b: b + b"\0" * 512, [1, 2, 3], ""),  # the length came to the disk, the bytes did not
        (lambda b: b[:30] + b"\0" * 300 + b[30:], [1, 3], "line 2"),
        (lambda b: b[:20] + b"\0" * 30 + b[50:], [3], "line 1"),  # with a line's end in the hole
        (lambda b: b[:40] + b"\n" + b[b.index(b"\n", 40) + 1 :], [1, 3], "line 2"),
        (lambda b: b"\n\n" + b, [1, 2, 3], ""),
    ],
    ids=["torn", "NUL tail", "NUL hole", "hole over an end", "half a line", "empty lines"],
)
def test_what_a_crash_leaves(log, messages, change, kept, warned):
    damage(log, change)
    assert steps(log) == kept
    assert (warned in " ".join(messages) and str(log.path) in " ".join(messages)) if warned else not messages
    log.append({"step": 4})
    assert steps(log) == [*kept, 4]
    log.keep(lambda _: True)
    messages.clear()
    assert steps(log) == [*kept, 4] and not messages


def test_a_log_of_which_nothing_is_whole_is_an_empty_one(log):
    damage(log, lambda b: b[:10] + b"\n" + b"\0" * 100)
    assert log.read() == []
    log.append({"step": 4})
    assert steps(log) == [4]


@pytest.mark.parametrize(
    "content",
    [b"a letter\n", b"no end", b'{"a": 1}\n', b'{"a": 1}', b'{\n "step": 1\n}\n', b"null\n", b"\xff\xfe\n"],
)
def test_somebodys_file_is_refused_and_left_as_it_is(log, content):
    log.path.write_bytes(content)
    for call in (log.read, lambda: log.keep(lambda _: True)):
        with pytest.raises(UserError, match=r"log\.jsonl: not a log of this package \(line \d\); delete it"):
            call()
    assert log.path.read_bytes() == content


def test_what_is_no_line_of_this_file_is_left_out_beside_good_ones(log, messages):
    damage(log, lambda b: b'{"other": 1}\n' + b + b"[1]\n")
    assert steps(log) == [1, 2, 3] and "2 damaged" in " ".join(messages)


def test_deeply_nested_lines_are_damaged_ones(log):
    damage(log, lambda b: b"[" * 100_000 + b"\n" + b)
    assert steps(log) == [1, 2, 3]


def test_a_short_write_takes_its_line_back(log):
    """The system takes a part of the line first, then none: the file keeps whole lines."""
    before = log.path.read_bytes()
    with files_up_to(len(before) + 50), pytest.raises(UserError, match=r"log\.jsonl: can't be written: File"):
        log.append({"step": 4, "text": "x" * 500})
    assert log.path.read_bytes() == before
    log.append({"step": 4})
    assert steps(log) == [1, 2, 3, 4]


def test_a_full_disk_keeps_the_log(full_disk):
    log = JsonLines(full_disk / "log.jsonl")
    log.append({"step": 1})
    with pytest.raises(UserError, match="can't be written: No space left on device"):
        log.append({"step": 2, "text": "x" * 100_000})
    log.append({"step": 3})
    assert steps(log) == [1, 3]
    filler = full_disk / "filler"
    with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with pytest.raises(UserError, match="can't be written: No space left on device"):
        log.keep(lambda line: line["step"] == 1)
    assert steps(log) == [1, 3] and names(full_disk) == ["filler", "log.jsonl"]


def test_numbers_that_json_has_not_are_refused(log):
    with pytest.raises(ValueError):
        log.append({"step": 4, "loss": float("nan")})
    assert steps(log) == [1, 2, 3]


def test_a_log_that_can_not_be_opened_says_so(tmp_path):
    log = JsonLines(tmp_path)
    for call in (log.read, lambda: log.append({})):
        with pytest.raises(UserError, match=r"can't be (read|written): Is a directory"):
            call()


# -- files from outside ------------------------------------------------------------------------


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2 << 40)
    for name, fault in {
        "pipe": "not a file", "zero": "not a file", "loop": "can't be read: Too many levels", "large": "allowed: 1,048",
        "none": "no such file", "a\0b": "can't be read: embedded null", "a" * 300: "File name too long",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=fault):
            read_text(tmp_path / name)
        with pytest.raises(UserError, match=str(tmp_path)):
            if name == "large":
                raise UserError(str(tmp_path))
            require_file(tmp_path / name)


def test_a_link_that_leads_out_of_a_folder_is_refused(tmp_path):
    folder = tmp_path / "run"
    (folder / "looks/clean").mkdir(parents=True)
    (folder / "latest").symlink_to("looks")
    (folder / "looks/up").symlink_to("../looks")
    check_links(folder)
    (folder / "looks/clean/true").symlink_to(tmp_path / "run_of_another")
    with pytest.raises(UserError, match=r"looks/clean/true: a link to .*run_of_another; nothing outside"):
        check_links(folder)


def test_a_folder_that_can_not_be_flushed_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EINVAL, "Invalid argument"))
    )
    sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        sync(tmp_path / "file")


def test_lines_are_not_written_through_links(tmp_path):
    """A hard link may be a backup's or somebody's file: it stays what it is. A symbolic one is refused."""
    (tmp_path / "other").write_text('{"step": 1}\n')
    (tmp_path / "hard").hardlink_to(tmp_path / "other")
    (tmp_path / "soft").symlink_to("other")
    JsonLines(tmp_path / "hard").append({"step": 2})
    assert [line["step"] for line in JsonLines(tmp_path / "hard").read()] == [1, 2]
    with pytest.raises(UserError, match="soft: can't be written"):
        JsonLines(tmp_path / "soft").append({"step": 2})
    assert (tmp_path / "other").read_text() == '{"step": 1}\n'
