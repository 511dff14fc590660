"""Packing goes on whatever interrupts it, and comes to what the PNG files hold; nobody else's files are touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from neuropbr_dist.commands.data import run as data
from neuropbr_dist.data.files.verify import verify
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.packed.source import PackedSource
from neuropbr_dist.errors import UserError
from tests.support.forked import Launch
from tests.support.material_files import save, write_set
from tests.support.packed_sets import assert_same_as_files

SIZE = 32
METADATA = {f"sample_{i:04d}": f"material_{i % 4}" for i in range(6)}
DEADLINE_S = 120


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(input, output): twelve entries of four materials. Not to be written to."""
    return write_set(tmp_path_factory.mktemp("pictures"), METADATA, renders=("clean", "dirty"), size=SIZE)


@pytest.fixture(scope="module")
def packed(pictures, tmp_path_factory):
    dest = tmp_path_factory.mktemp("packed") / "set"
    assert pack(*pictures, dest, progress=False).clean
    return dest


def copied(packed, tmp_path):
    return Path(shutil.copytree(packed, tmp_path / "copy"))


# -- only what verify accepts --------------------------------------------------------------


@pytest.fixture
def faulty(pictures, tmp_path):
    """A set with a faulty view (sample_0003) and a material that is another's copy (0 and 4 share it)."""
    inputs, outputs = (Path(shutil.copytree(path, tmp_path / path.name)) for path in pictures)
    save(np.zeros((8, 8, 3)), inputs / "dirty/sample_0003/1.png")
    return inputs, outputs


def test_a_faulty_set_is_refused_with_verifys_report(faulty, tmp_path):
    dest = tmp_path / "dest"
    verification = pack(*faulty, dest, progress=False)
    assert verification == verify(*faulty, progress=False) and not verification.clean
    with pytest.raises(UserError, match="packing has not come to its end; go on by the same command"):
        PackedSource(dest, 0)
    # Mended, only what was wrong is done again.
    before = lines(dest)
    rng = np.random.default_rng(3)
    save(rng.integers(0, 256, (SIZE, SIZE, 3)), faulty[0] / "dirty/sample_0003/1.png")
    assert pack(*faulty, dest, progress=False).clean
    assert [line["task"] for line in lines(dest)[len(before) :]] == ["views:dirty/sample_0003"]
    assert len(PackedSource(dest, 1).entries) == 12


def test_skip_faulty_leaves_out_samples_not_single_files(faulty, tmp_path):
    dest = tmp_path / "dest"
    verification = pack(*faulty, dest, skip_faulty=True, progress=False)
    assert verification.faulty_samples == ["sample_0003"]
    source = PackedSource(dest, 1)
    assert {e.name for e in source.entries} == METADATA.keys() - {"sample_0003"}
    for entry in source.entries:
        source.load(entry)
    assert not any("material_3" in str(entry.material) for entry in source.entries)


def lines(dest):
    return [json.loads(line) for line in (dest / "journal.jsonl").read_text().splitlines()]


# -- interruptions -------------------------------------------------------------------------


PACK = "from neuropbr_dist.commands.data.pack import run\nrun()\n"


def start_packing(pictures, dest, workers=2):
    return Launch([*map(str, pictures), str(dest), "--workers", str(workers)], program=PACK)


@pytest.mark.drill
@pytest.mark.multiprocess
def test_killed_again_and_again_it_comes_to_the_same_set(tmp_path):
    metadata = {f"sample_{i:04d}": f"material_{i:02d}" for i in range(16)}
    pictures = write_set(tmp_path, metadata, renders=("clean", "dirty"), size=256)
    dest, noted, kills = tmp_path / "dest", 0, 0
    while True:
        packer = start_packing(pictures, dest)
        wanted, deadline = noted + 14, time.monotonic() + DEADLINE_S
        while packer.process.is_alive() and records(dest) < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        if not packer.process.is_alive():
            break
        workers = psutil.Process(packer.process.pid).children(recursive=True)
        packer.process.kill()
        packer.wait()
        kills += 1
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive, "working processes outlive the packer"
        assert not (dest / "packed.json").exists()
        assert records(dest) >= wanted
        noted = records(dest)
        garble_the_tail(dest, kills)
    ended = packer.wait()
    assert ended.code == 0, ended.err
    assert kills >= 2
    assert_same_as_files(dest, pictures)
    names = [line["task"] for line in lines(dest)[1:]]
    assert len(names) == len(set(names)) == 32 + 16, "nothing noted was done twice"


@pytest.mark.multiprocess
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_at_the_keyboard_it_says_one_word_and_goes_on(tmp_path, workers):
    metadata = {f"sample_{i:04d}": f"material_{i:02d}" for i in range(16)}
    pictures, dest = write_set(tmp_path, metadata, size=256), tmp_path / "dest"
    packer = start_packing(pictures, dest, workers)
    while packer.process.is_alive() and records(dest) < 2:
        time.sleep(0.002)
    os.kill(packer.process.pid, signal.SIGINT)
    ended = packer.wait()
    assert ended.code == 130
    assert ended.err.splitlines()[-1].endswith("interrupted") and "Traceback" not in ended.err
    assert not (dest / "packed.json").exists() and 2 <= records(dest) < 1 + 32
    assert pack(*pictures, dest, progress=False).clean
    assert_same_as_files(dest, pictures, 0)


def records(dest):
    path = dest / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def garble_the_tail(dest, number):
    """As if killed inside the journal's next line and a record's next byte."""
    with open(dest / "journal.jsonl", "a") as journal:
        journal.write('{"task": "views:cl'[: 3 * number])
    with open(max((dest / "shards").iterdir()), "ab") as shard:
        shard.write(b"half a record" * number)


def test_every_cut_of_the_journal_goes_on(pictures, tmp_path):
    dest = tmp_path / "dest"
    pack(*pictures, dest, progress=False)
    whole = (dest / "journal.jsonl").read_bytes()
    for cut in range(0, len(whole), 787):
        (dest / "packed.json").unlink(missing_ok=True)
        (dest / "journal.jsonl").write_bytes(whole[:cut])
        assert pack(*pictures, dest, progress=False).clean
        assert_same_as_files(dest, pictures)


def test_a_record_that_the_disk_never_got_is_written_again(pictures, tmp_path):
    dest = tmp_path / "dest"
    pack(*pictures, dest, progress=False)
    (dest / "packed.json").unlink()
    shard = max((dest / "shards").iterdir())
    os.truncate(shard, shard.stat().st_size // 2)
    left = dest / f".{'0123456789abcdef' * 2}.tmp.npy"  # a file of the index, half written
    left.touch()
    assert pack(*pictures, dest, progress=False).clean
    assert_same_as_files(dest, pictures)
    assert not left.exists()


def test_a_full_disk_is_one_line_and_nothing_half_visible(pictures, tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140k", "tmpfs", mount], capture_output=True)
    if made.returncode:
        pytest.skip("needs the right to mount a file system")
    dest = mount / "dest"
    try:
        ended = start_packing(pictures, dest).wait()
        assert ended.code == 2
        (error,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in error and str(dest) in error and "Traceback" not in ended.err
        assert not (dest / "packed.json").exists()
        noted = records(dest)
        assert noted > 2
        with pytest.raises(UserError, match="packing has not come to its end"):
            PackedSource(dest, 0)
        subprocess.run(["mount", "-o", "remount,size=4m", mount], check=True)
        assert start_packing(pictures, dest).wait().code == 0
        assert_same_as_files(dest, pictures)
        assert records(dest) == 1 + 16
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.multiprocess
def test_a_second_packer_is_refused(tmp_path):
    metadata = {f"sample_{i:04d}": f"material_{i:02d}" for i in range(12)}
    pictures = write_set(tmp_path, metadata, size=256)
    dest = tmp_path / "dest"
    first = start_packing(pictures, dest, workers=2)
    while first.process.is_alive() and records(dest) < 1:  # the folder is its own, and its workers come up
        time.sleep(0.002)
    os.kill(first.process.pid, signal.SIGSTOP)
    try:
        second = start_packing(pictures, dest, workers=1).wait()
    finally:
        os.kill(first.process.pid, signal.SIGCONT)
    assert second.code == 2
    assert f"{dest} is in use by another packer: host " in second.err
    assert f"pid {first.process.pid}" in second.err
    assert first.wait().code == 0
    assert_same_as_files(dest, pictures)


# -- what is refused -----------------------------------------------------------------------


def test_a_destination_that_holds_something_else_is_left_alone(pictures, packed, tmp_path):
    with pytest.raises(UserError, match="not empty, and no packed set was begun in it"):
        pack(*pictures, pictures[0], progress=False)
    dest = copied(packed, tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in dest.rglob("*.*"))
    assert pack(*pictures, dest, progress=False).clean  # done already
    other = write_set(tmp_path / "other", METADATA, size=SIZE, seed=1)
    with pytest.raises(UserError, match="packing was begun there with input_dir = "):
        pack(*other, dest, progress=False)
    assert sorted((path, path.stat().st_mtime_ns) for path in dest.rglob("*.*")) == before


@pytest.mark.parametrize(
    "text", ["my notes", "my notes\n", '{"my": "notes"}\n', '[["a list", "of verify"]]\n']
)
def test_a_journal_of_something_else_is_refused_before_anything_is_written_to_it(pictures, tmp_path, text):
    (tmp_path / "journal.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"journal\.jsonl: not the journal of a packed set"):
        pack(*pictures, tmp_path, progress=False)
    assert (tmp_path / "journal.jsonl").read_text() == text


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (
            {"version": 1, "compression": "none", "input_dir": "in", "output_dir": "out"},
            r"begun there in format version 1, .*; delete the set and pack it again",
        ),
        ("damaged", "its first line is damaged"),
    ],
)
def test_a_set_begun_otherwise_is_refused(pictures, packed, tmp_path, first, message):
    dest = copied(packed, tmp_path)
    (dest / "packed.json").unlink()
    rest = (dest / "journal.jsonl").read_text().splitlines()[1:]
    (dest / "journal.jsonl").write_text("\n".join([json.dumps(first), *rest, ""]))
    with pytest.raises(UserError, match=message):
        pack(*pictures, dest, progress=False)


def test_a_finished_set_is_not_changed_by_changed_pictures(pictures, tmp_path):
    folders = [Path(shutil.copytree(path, tmp_path / path.name)) for path in pictures]
    dest = tmp_path / "dest"
    pack(*folders, dest, progress=False)
    save(np.random.default_rng(8).integers(0, 256, (SIZE, SIZE, 3)), folders[0] / "clean/sample_0001/0.png")
    with pytest.raises(UserError, match="holds a packed set of other pictures"):
        pack(*folders, dest, progress=False)
    assert_same_as_files(dest, pictures)


def test_a_finished_set_that_has_lost_a_file_says_so(pictures, packed, tmp_path):
    for lost, message in (
        ("shards", r"missing; .*delete it and pack it again"),
        ("journal.jsonl", "without its journal"),
    ):
        (tmp_path / lost).mkdir()
        dest = copied(packed, tmp_path / lost)
        (next((dest / "shards").iterdir()) if lost == "shards" else dest / lost).unlink()
        with pytest.raises(UserError, match=message):
            pack(*pictures, dest, progress=False)


def test_a_refused_command_leaves_nothing_in_the_folder(pictures, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty, and no packed set was begun in it"):
        data(["pack", *map(str, pictures), str(tmp_path), "--debug"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
