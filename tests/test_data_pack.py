"""A packed set holds what the PNG files hold, whatever interrupts its making; and no altered byte of it is used."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from neuropbr_dist.commands.data import run as data
from neuropbr_dist.config import DataConfig
from neuropbr_dist.data.files.decode import read_maps, read_views
from neuropbr_dist.data.files.layout import scan
from neuropbr_dist.data.files.verify import verify
from neuropbr_dist.data.loader import TrainingSlots, batches_of
from neuropbr_dist.data.order import SampleOrder
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.packed.source import PackedSource, head_checksum
from neuropbr_dist.data.sources import FileSource, fingerprint
from neuropbr_dist.data.split import split
from neuropbr_dist.errors import UserError
from tests.support.distributed import ROOT
from tests.support.material_files import save, write_set

SIZE = 32
METADATA = {f"sample_{i:04d}": f"material_{i % 4}" for i in range(6)}
DEADLINE_S = 120


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(input, output): twelve entries of four materials. Not to be written to."""
    return write_set(tmp_path_factory.mktemp("pictures"), METADATA, sources=("clean", "dirty"), size=SIZE)


@pytest.fixture(scope="module", params=["none", "deflate"])
def packed(request, pictures, tmp_path_factory):
    dest = tmp_path_factory.mktemp("packed") / request.param
    # A shard holds three records or so.
    assert pack(*pictures, dest, compression=request.param, progress=False, shard_bytes=30_000).clean
    return dest


def copied(packed, tmp_path):
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def files(pictures, curriculum=1, size=None):
    entries = scan(*pictures, None, curriculum)
    return FileSource(entries, size or SIZE, resize=size is not None, cache_mib=1)


# -- the same as from PNG ------------------------------------------------------------------


@pytest.mark.parametrize("curriculum", [0, 1, 2])
@pytest.mark.parametrize("size", [None, 20])
def test_every_sample_has_the_same_name_place_and_bits(pictures, packed, curriculum, size):
    ours, theirs = PackedSource(packed, curriculum, size), files(pictures, curriculum, size)
    ours.check_shards()
    assert len(list((packed / "shards").iterdir())) > 3
    assert [(e.key, e.name, e.source, e.material) for e in ours.entries] == [
        (e.key, e.name, e.source, e.material) for e in theirs.entries
    ]
    assert fingerprint(ours.entries, ours.size) == fingerprint(theirs.entries, theirs.size)
    for entry, sample in zip(ours.entries, theirs.entries, strict=True):
        views, maps = ours.load(entry)
        np.testing.assert_array_equal(views, read_views(sample, size))
        np.testing.assert_array_equal(maps, read_maps(sample, size))
    for split_by in ("material", "sample"):
        for mine, other in zip(
            split(ours.entries, 0.3, split_by, 5), split(theirs.entries, 0.3, split_by, 5), strict=True
        ):
            assert [e.key for e in mine] == [e.key for e in other]


def batches(source, workers=0):
    order = SampleOrder(len(source.entries), global_batch=3, epochs=2, seed=4)
    slots = TrainingSlots(order, 0, world=1, rank=0, batch_size=3)
    read = DataConfig(num_workers=workers)
    with batches_of(read, source, source.entries, slots, torch.device("cpu")) as loader:
        return list(loader)


@pytest.mark.multiprocess
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_in_the_same_order(pictures, packed, workers):
    ours, theirs = batches(PackedSource(packed, 1), workers), batches(files(pictures), workers)
    assert len(ours) == 8
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.views, other.views) and torch.equal(one.maps, other.maps)
        assert torch.equal(one.weight, other.weight)


def test_a_material_is_stored_once(packed):
    records = np.load(packed / "records.npy")
    assert len(records) == 12 + 4
    assert len({(record["name"], record["offset"]) for record in records}) == 16


def test_a_spawned_process_maps_the_index_itself(packed):
    source = PackedSource(packed, 2, 20)
    text = pickle.dumps(source)
    assert len(text) < 400
    again = pickle.loads(text)
    assert again.size == 20 and [e.key for e in again.entries] == [e.key for e in source.entries]
    assert isinstance(again._samples, np.memmap)


# -- only what verify accepts --------------------------------------------------------------


@pytest.fixture
def faulty(pictures, tmp_path):
    """A set with a faulty view (sample_0003) and a material that is another's copy (0 and 4 share it)."""
    inputs, outputs = (Path(shutil.copytree(path, tmp_path / path.name)) for path in pictures)
    save(np.zeros((8, 8, 3)), inputs / "dirty/sample_0003/1.png")
    return inputs, outputs


def test_a_faulty_set_is_refused_with_verifys_report(faulty, tmp_path):
    dest = tmp_path / "dest"
    report = pack(*faulty, dest, progress=False)
    assert report == verify(*faulty, progress=False) and not report.clean
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
    report = pack(*faulty, dest, skip_faulty=True, progress=False)
    assert report.faulty_samples == ["sample_0003"]
    source = PackedSource(dest, 1)
    assert {e.name for e in source.entries} == METADATA.keys() - {"sample_0003"}
    for entry in source.entries:
        source.load(entry)
    assert not any("material_3" in str(entry.material) for entry in source.entries)


def lines(dest):
    return [json.loads(line) for line in (dest / "journal.jsonl").read_text().splitlines()]


# -- interruptions -------------------------------------------------------------------------


def start_packing(pictures, dest, workers=2):
    command = [
        sys.executable, ROOT / "launch/data.py", "pack", *pictures, dest, "--workers", str(workers),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def same_as_files(dest, pictures):
    source = PackedSource(dest, 1)
    source.check_shards()
    theirs = files(pictures)
    assert [e.key for e in source.entries] == [e.key for e in theirs.entries]
    for entry, sample in zip(source.entries, theirs.entries, strict=True):
        for ours, other in zip(source.load(entry), theirs.load(sample), strict=True):
            np.testing.assert_array_equal(ours, other)


@pytest.mark.drill
@pytest.mark.multiprocess
def test_killed_again_and_again_it_comes_to_the_same_set(tmp_path):
    metadata = {f"sample_{i:04d}": f"material_{i:02d}" for i in range(16)}
    pictures = write_set(tmp_path, metadata, sources=("clean", "dirty"), size=256)
    dest, noted, kills = tmp_path / "dest", 0, 0
    while True:
        packer = start_packing(pictures, dest)
        wanted, deadline = noted + 14, time.monotonic() + DEADLINE_S
        while packer.poll() is None and records(dest) < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        if packer.poll() is not None:
            break
        workers = psutil.Process(packer.pid).children(recursive=True)
        packer.send_signal(signal.SIGKILL)
        packer.communicate()
        kills += 1
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive, "working processes outlive the packer"
        assert not (dest / "packed.json").exists()
        assert records(dest) >= wanted
        noted = records(dest)
        garble_the_tail(dest, kills)
    assert packer.returncode == 0, packer.communicate()
    assert kills >= 2
    same_as_files(dest, pictures)
    names = [line["task"] for line in lines(dest)[1:]]
    assert len(names) == len(set(names)) == 32 + 16, "nothing noted was done twice"


@pytest.mark.multiprocess
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_at_the_keyboard_it_says_one_word_and_goes_on(tmp_path, workers):
    metadata = {f"sample_{i:04d}": f"material_{i:02d}" for i in range(16)}
    pictures, dest = write_set(tmp_path, metadata, size=256), tmp_path / "dest"
    packer = start_packing(pictures, dest, workers)
    while packer.poll() is None and records(dest) < 2:
        time.sleep(0.002)
    packer.send_signal(signal.SIGINT)
    _, err = packer.communicate(timeout=DEADLINE_S)
    assert packer.returncode == 130
    assert err.splitlines()[-1].endswith("interrupted") and "Traceback" not in err
    assert not (dest / "packed.json").exists() and 2 <= records(dest) < 1 + 32
    assert pack(*pictures, dest, progress=False).clean
    same_as_clean_files(dest, pictures)


def same_as_clean_files(dest, pictures):
    for ours, theirs in zip(
        PackedSource(dest, 0).entries, files(pictures, curriculum=0).entries, strict=True
    ):
        for mine, other in zip(
            PackedSource(dest, 0).load(ours), (read_views(theirs), read_maps(theirs)), strict=True
        ):
            np.testing.assert_array_equal(mine, other)


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
    for cut in range(0, len(whole), 331):
        (dest / "packed.json").unlink(missing_ok=True)
        (dest / "journal.jsonl").write_bytes(whole[:cut])
        assert pack(*pictures, dest, progress=False).clean
        same_as_files(dest, pictures)


def test_a_record_that_the_disk_never_got_is_written_again(pictures, tmp_path):
    dest = tmp_path / "dest"
    pack(*pictures, dest, progress=False)
    (dest / "packed.json").unlink()
    shard = max((dest / "shards").iterdir())
    os.truncate(shard, shard.stat().st_size // 2)
    assert pack(*pictures, dest, progress=False).clean
    same_as_files(dest, pictures)


def test_a_full_disk_is_one_line_and_nothing_half_visible(pictures, tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140k", "tmpfs", mount], capture_output=True)
    if made.returncode:
        pytest.skip("needs the right to mount a file system")
    dest = mount / "dest"
    try:
        packer = start_packing(pictures, dest)
        _, err = packer.communicate(timeout=DEADLINE_S)
        assert packer.returncode == 2
        (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in error and str(dest) in error and "Traceback" not in err
        assert not (dest / "packed.json").exists()
        noted = records(dest)
        assert noted > 2
        with pytest.raises(UserError, match="packing has not come to its end"):
            PackedSource(dest, 0)
        subprocess.run(["mount", "-o", "remount,size=4m", mount], check=True)
        packer = start_packing(pictures, dest)
        packer.communicate(timeout=DEADLINE_S)
        assert packer.returncode == 0
        same_as_files(dest, pictures)
        assert records(dest) == 1 + 16
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.multiprocess
def test_a_second_packer_is_refused(tmp_path):
    metadata = {f"sample_{i:04d}": f"material_{i:02d}" for i in range(12)}
    pictures = write_set(tmp_path, metadata, size=256)
    dest = tmp_path / "dest"
    first = start_packing(pictures, dest, workers=1)
    while first.poll() is None and records(dest) < 2:
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)
    try:
        second = start_packing(pictures, dest, workers=1)
        _, err = second.communicate(timeout=DEADLINE_S)
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert f"{dest} is in use by another packer: host " in err and f"pid {first.pid}" in err
    first.communicate(timeout=DEADLINE_S)
    assert first.returncode == 0
    same_as_files(dest, pictures)


# -- what is refused -----------------------------------------------------------------------


def test_an_altered_record_is_named_and_refused(packed, tmp_path):
    dest = copied(packed, tmp_path)
    records = np.load(dest / "records.npy")
    source = PackedSource(dest, 1)
    keys = [entry.key for entry in source.entries] + [f"material_{i}" for i in range(4)]
    rng = np.random.default_rng(0)
    for record, key in zip(records, keys, strict=True):
        shard = dest / "shards" / record["name"].decode()
        at = int(record["offset"] + rng.integers(record["nbytes"]))
        flip(shard, at)
        refused = 0
        for entry in PackedSource(dest, 1).entries:
            fresh = PackedSource(dest, 1)
            if key in (entry.key, entry.material):
                with pytest.raises(UserError, match=rf"{shard.name}: the record of .*{key}.* was altered"):
                    fresh.load(entry)
                with pytest.raises(UserError, match="was altered"):  # mapped already: looked at again
                    source.load(entry)
                refused += 1
            else:
                fresh.load(entry)
        assert refused == (1 if "/" in key else sum(e.material == key for e in source.entries))
        flip(shard, at)


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def test_a_truncated_or_missing_shard_is_named_at_start_and_on_reading(packed, tmp_path):
    dest = copied(packed, tmp_path)
    source = PackedSource(dest, 1)
    for entry in source.entries:
        source.load(entry)
    shard = min((dest / "shards").iterdir())
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(UserError, match=rf"{shard.name}: truncated: \d+ bytes of \d+"):
        source.check_shards()
    for opened in (source, PackedSource(dest, 1)):  # mapped before, and not
        with pytest.raises(UserError, match=rf"{shard.name}.*truncated"):
            for entry in opened.entries:
                opened.load(entry)
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: missing"):
        source.check_shards()
    with pytest.raises(UserError, match=rf"{shard.name}: .*No such file"):
        for entry in PackedSource(dest, 1).entries:
            PackedSource(dest, 1).load(entry)


def test_only_the_shards_of_a_sample_are_opened(packed, tmp_path):
    dest = copied(packed, tmp_path)
    source = PackedSource(dest, 0)
    entry = source.entries[3]
    used = used_shards(dest, entry)
    for shard in (dest / "shards").iterdir():
        if shard.name not in used:
            shard.unlink()
    expected = PackedSource(packed, 0).load(entry)
    for ours, other in zip(source.load(entry), expected, strict=True):
        np.testing.assert_array_equal(ours, other)


def used_shards(dest, entry):
    samples, materials, records = (np.load(dest / f"{n}.npy") for n in ("samples", "materials", "records"))
    row = samples[entry.row]
    places = row["record"], materials[row["material"]]["record"]
    return {records[place]["name"].decode() for place in places}


@pytest.mark.parametrize("name", ["samples.npy", "materials.npy", "records.npy", "packed.json"])
def test_an_altered_index_is_refused(packed, tmp_path, name):
    dest = copied(packed, tmp_path)
    flip(dest / name, (dest / name).stat().st_size // 2)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        PackedSource(dest, 0)
    (dest / name).unlink()
    with pytest.raises(UserError, match=r"missing|has not come to its end"):
        PackedSource(dest, 0)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (0, r"an older format, version 0; .* pack it again: python launch/data\.py pack IN OUT DEST"),
        (99, r"a newer format, version 99; .* update this program"),
    ],
)
def test_another_format_version_says_what_to_do(packed, tmp_path, version, message):
    dest = copied(packed, tmp_path)
    head = json.loads((dest / "packed.json").read_text())
    head["version"] = version
    del head["checksum"]
    (dest / "packed.json").write_text(json.dumps({**head, "checksum": head_checksum(head)}))
    with pytest.raises(UserError, match=message):
        PackedSource(dest, 0)


@pytest.mark.parametrize("text", ["[]", "1", "{}", '{"version": "x"}', '{"version": null}', "no JSON"])
def test_a_foreign_head_is_named(tmp_path, text):
    (tmp_path / "packed.json").write_text(text)
    with pytest.raises(
        UserError, match=r"packed\.json: not the head of a packed set; delete it and pack it again"
    ):
        PackedSource(tmp_path, 0)


def test_what_is_no_packed_set(pictures, packed, tmp_path):
    with pytest.raises(UserError, match="not a packed set \\(no such folder\\)"):
        PackedSource(tmp_path / "none", 0)
    with pytest.raises(UserError, match=r"not a packed set \(no packed\.json in it\)"):
        PackedSource(pictures[0], 0)
    clean = write_set(tmp_path / "clean", size=SIZE)
    pack(*clean, tmp_path / "dest", progress=False)
    with pytest.raises(UserError, match=r"no samples for data\.render_curriculum = 2 \(dirty renders\)"):
        PackedSource(tmp_path / "dest", 2)


def test_a_destination_that_holds_something_else_is_left_alone(pictures, packed, tmp_path):
    with pytest.raises(UserError, match="not empty, and no packed set was begun in it"):
        pack(*pictures, pictures[0], progress=False)
    dest = copied(packed, tmp_path)
    compression = json.loads((dest / "packed.json").read_text())["compression"]
    before = sorted((path, path.stat().st_mtime_ns) for path in dest.rglob("*.bin"))
    assert pack(*pictures, dest, compression=compression, progress=False).clean  # done already
    other = write_set(tmp_path / "other", METADATA, size=SIZE, seed=1)
    with pytest.raises(UserError, match="packing was begun there with input_dir = "):
        pack(*other, dest, compression=compression, progress=False)
    another = {"none": "deflate", "deflate": "none"}[compression]
    with pytest.raises(UserError, match=f"begun there with compression = {compression}"):
        pack(*pictures, dest, compression=another, progress=False)
    assert sorted((path, path.stat().st_mtime_ns) for path in dest.rglob("*.bin")) == before


def test_a_finished_set_is_not_changed_by_changed_pictures(pictures, tmp_path):
    folders = [Path(shutil.copytree(path, tmp_path / path.name)) for path in pictures]
    dest = tmp_path / "dest"
    pack(*folders, dest, progress=False)
    save(np.random.default_rng(8).integers(0, 256, (SIZE, SIZE, 3)), folders[0] / "clean/sample_0001/0.png")
    with pytest.raises(UserError, match="holds a packed set of other pictures"):
        pack(*folders, dest, progress=False)
    same_as_files(dest, pictures)


def test_a_finished_set_that_has_lost_a_file_says_so(pictures, packed, tmp_path):
    compression = json.loads((packed / "packed.json").read_text())["compression"]
    for lost, message in (
        ("shards", r"missing; .*delete it and pack it again"),
        ("journal.jsonl", "without its journal"),
    ):
        (tmp_path / lost).mkdir()
        dest = copied(packed, tmp_path / lost)
        (next((dest / "shards").iterdir()) if lost == "shards" else dest / lost).unlink()
        with pytest.raises(UserError, match=message):
            pack(*pictures, dest, compression=compression, progress=False)


def test_a_refused_command_leaves_nothing_in_the_folder(pictures, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty, and no packed set was begun in it"):
        data(["pack", *map(str, pictures), str(tmp_path), "--debug"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
