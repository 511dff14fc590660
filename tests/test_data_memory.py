"""What data keep in memory is bounded: cached materials, mapped records, the index of a large set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.loader import large_set
from neuropbr_dist.data.files.decode import read_maps
from neuropbr_dist.data.files.layout import scan
from neuropbr_dist.data.packed import shards
from neuropbr_dist.data.packed.shards import Record, ShardReader, ShardWriter
from neuropbr_dist.data.sources import FileSource
from tests.support.material_files import write_material, write_set

SIZE = 256  # 8 maps of it are half a MiB
METADATA = {f"sample_{i}": f"material_{i % 3}" for i in range(6)}


def test_materials_are_decoded_once_and_the_oldest_goes_first(tmp_path):
    entries = scan(*write_set(tmp_path, METADATA, size=SIZE))
    source = FileSource(entries, SIZE, resize=False, cache_mib=1)
    first = [source.load(entry)[1] for entry in entries[:2]]  # two materials: full
    for material in range(3):  # from now on the files say otherwise
        for path in (tmp_path / f"output/material_{material}").iterdir():
            path.unlink()
        (tmp_path / f"output/material_{material}").rmdir()
        write_material(tmp_path / f"output/material_{material}", SIZE, np.random.default_rng(50 + material))
    for entry, maps in zip(entries[3:5], first, strict=True):
        assert source.load(entry)[1] is maps  # another sample, the same material
        assert not maps.flags.writeable
    np.testing.assert_array_equal(source.load(entries[2])[1], read_maps(entries[2]))  # pushes out material_0
    np.testing.assert_array_equal(source.load(entries[0])[1], read_maps(entries[0]))
    assert source.load(entries[5])[1] is source.load(entries[2])[1]


def test_without_room_nothing_is_kept(tmp_path):
    (entry,) = scan(*write_set(tmp_path, {"a": "wood"}, size=SIZE))
    source = FileSource([entry], SIZE, resize=False, cache_mib=0)
    assert source.load(entry)[1] is not source.load(entry)[1]


def test_open_shards_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_SHARDS", 3)
    writer = ShardWriter(tmp_path, "a", 20_000)  # two records each
    records = [np.full((5, 32, 32), i, np.uint8) for i in range(12)]
    places = [writer.append({"x": record}) for record in records]
    writer.close()
    reader, out = ShardReader(tmp_path), np.empty((5, 32, 32), np.uint8)
    for _ in range(2):
        for i, place in enumerate(places):
            Record(reader, place, str(i)).read("x", out)
            np.testing.assert_array_equal(out, records[i])
            assert open_files(tmp_path) <= 3
    assert open_files(tmp_path) == 3
    del reader
    assert open_files(tmp_path) == 0


def open_files(folder):
    return sum(str(folder) in str(link.resolve()) for link in Path("/proc/self/fd").iterdir())


def test_the_index_of_20_000_samples_is_small_and_shared(tmp_path):
    figures = large_set(tmp_path / "large", 20_000)
    assert figures["samples"] == 20_000
    assert figures["MiB"] < 40
    assert figures["own MiB"] < 4, "a loader process copies the index"
