"""A packed set gives what the PNG files hold at every side, reads no more than it must, and uses no altered byte."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from neuropbr_dist.config import DataConfig
from neuropbr_dist.data.files.decode import resize
from neuropbr_dist.data.loader import batches_of, training_slots
from neuropbr_dist.data.order import SampleOrder
from neuropbr_dist.data.packed import records
from neuropbr_dist.data.packed.index import PackedIndex, metadata_checksum, write_index
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.packed.records import decode_header, level_sides, levels_of
from neuropbr_dist.data.packed.shards import Record, ShardReader, ShardWriter
from neuropbr_dist.data.packed.source import PackedSet, PackedSource
from neuropbr_dist.data.sources import fingerprint
from neuropbr_dist.data.split import split
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.plane import ENCODED
from tests.support.material_files import random_normals, write_set
from tests.support.packed_sets import assert_same_as_files, bytes_read, files, flip

METADATA = {f"sample_{i:04d}": f"material_{i % 4}" for i in range(6)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(input, output): twelve entries of four materials, 32 px. Not to be written to."""
    return write_set(tmp_path_factory.mktemp("pictures"), METADATA, renders=("clean", "dirty"), size=32)


@pytest.fixture(scope="module")
def packed(pictures, tmp_path_factory):
    dest = tmp_path_factory.mktemp("packed") / "set"
    assert pack(*pictures, dest, progress=False, shard_bytes=50_000).clean  # three records or so a shard
    return dest


@pytest.fixture(scope="module")
def large_pictures(tmp_path_factory):
    """Three samples of two materials, 128 px."""
    return write_set(tmp_path_factory.mktemp("large_pictures"), size=128)


@pytest.fixture(scope="module")
def large(large_pictures, tmp_path_factory):
    """At 128, 64 and 32 px in blocks of 8, 16 and 32 rows: the format's own limits are for larger pictures."""
    dest = tmp_path_factory.mktemp("large") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SMALLEST_SIDE", 32)
        patch.setattr(records, "BLOCK_BYTES", 1024)
        assert pack(*large_pictures, dest, progress=False).clean
    return dest


def copied(packed, tmp_path):
    return Path(shutil.copytree(packed, tmp_path / "copy"))


# -- the same as from PNG ------------------------------------------------------------------


@pytest.mark.parametrize("curriculum", [0, 1, 2])
@pytest.mark.parametrize("size", [None, 20])
def test_every_sample_has_the_same_name_place_and_bits(pictures, packed, curriculum, size):
    assert_same_as_files(packed, pictures, curriculum, size)
    assert len(list((packed / "shards").iterdir())) > 3
    ours, theirs = PackedSource(packed, curriculum, size), files(pictures, curriculum, size)
    assert fingerprint(ours.entries, ours.size) == fingerprint(theirs.entries, theirs.size)
    for split_by in ("material", "sample"):
        for mine, other in zip(
            split(ours.entries, 0.3, split_by, 5), split(theirs.entries, 0.3, split_by, 5), strict=True
        ):
            assert [e.key for e in mine] == [e.key for e in other]


@pytest.mark.parametrize("size", [None, 64, 32, 50, 200])
def test_so_it_has_at_its_halvings_and_at_sides_that_are_not_stored(large_pictures, large, size):
    assert_same_as_files(large, large_pictures, 0, size)


def batches(source, workers=0):
    order = SampleOrder(len(source.entries), global_batch=3, epochs=2, seed=4)
    slots = training_slots(order, 0, world=1, rank=0, batch_size=3)
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


def test_a_spawned_process_reads_the_index_itself(packed):
    source = PackedSource(packed, 2, 20)
    text = pickle.dumps(source)
    assert len(text) < 400
    again = pickle.loads(text)
    assert again.size == 20 and [e.key for e in again.entries] == [e.key for e in source.entries]
    assert not again.set.index.samples.flags.writeable


def test_what_is_cut_after_it_was_opened_is_an_error_not_the_end(packed, tmp_path):
    """Of a memory map the process would end by SIGBUS."""
    folder = shutil.copytree(packed, tmp_path / "set")
    source = PackedSource(folder, 2, 20)
    keys = [entry.key for entry in source.entries]
    for table in folder.glob("*.npy"):
        os.truncate(table, 0)
    assert [entry.key for entry in source.entries] == keys and source.cameras(source.entries[0]).size
    source.load(source.entries[0])
    for shard in (folder / "shards").iterdir():
        os.truncate(shard, 100)
    with pytest.raises(UserError, match="truncated"):
        source.load(source.entries[1])


# -- levels --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "sides"),
    [
        (4096, [4096, 2048, 1024, 512, 256]), (1536, [1536, 768, 384]), (1000, [1000, 500]),
        (512, [512, 256]), (510, [510]), (257, [257]), (256, [256]), (32, [32]),
    ],
)  # fmt: skip
def test_a_picture_is_halved_while_it_is_whole_and_256_px_or_more(side, sides):
    assert level_sides(side) == sides


def test_halving_is_an_average_that_keeps_means_and_normals():
    """Within a grey level of the float average; of normals, within 1.5 degrees of the averaged vectors."""
    rng = np.random.default_rng(0)
    pictures = np.concatenate(
        [random_normals(512, rng).transpose(2, 0, 1), rng.integers(0, 256, (1, 512, 512))]
    )
    (half, whole) = levels_of(pictures.astype(np.uint8))
    assert whole.shape == (4, 512, 512) and half.shape == (4, 256, 256)
    weights = np.array([1, 3, 3, 1]) / 8  # the triangle of twice the pixel's width, at its four pixels
    rows = sum(w * whole.astype(float)[:, i + 1 : i + 508 : 2] for i, w in enumerate(weights))
    mean = sum(w * rows[:, :, i + 1 : i + 508 : 2] for i, w in enumerate(weights))
    inner = half[:, 1:-1, 1:-1].astype(float)
    np.testing.assert_allclose(inner, mean, atol=1.0)
    assert abs(half.mean() - whole.mean()) < 0.25  # Pillow rounds twice, halves upwards
    found, wanted = (x[:3] / 127.5 - 1 for x in (inner, mean))
    cosine = (found * wanted).sum(0) / np.linalg.norm(found, axis=0) / np.linalg.norm(wanted, axis=0)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 1.5


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_level_is_all_that_is_read(large, size):
    source = PackedSource(large, 0, size)
    source.load(source.entries[0])  # opens the shards
    used = (0, source.set.index.materials["record"][source.set.materials.index(source.entries[0].material)])
    headers = [source.set.index.place(record).header for record in used]
    assert max(headers) < 4096
    assert bytes_read(lambda: source.load(source.entries[0])) == 17 * size**2 + sum(headers)


@pytest.mark.parametrize("size", [32, 64, 128, 50])
def test_rows_are_read_alone(large, size):
    source = PackedSource(large, 0, size)
    views, maps = source.load(source.entries[1])
    material = source.set.materials.index(source.entries[1].material)
    rng = np.random.default_rng(size)
    ends = np.sort(rng.integers(0, size + 1, (9, 2)))
    for first, last in [(0, size), (0, 0), (0, 8), (size - 1, size), (7, 9), *ends]:
        some_views, some_maps = (
            np.empty((3, 3, last - first, size), np.uint8),
            np.empty((8, last - first, size), np.uint8),
        )
        source.set.views(source.entries[1], some_views, [first] * 3)
        source.set.maps(material, some_maps, first)
        np.testing.assert_array_equal(some_views, views[:, :, first:last])
        np.testing.assert_array_equal(some_maps, maps[:, first:last])
    if size == 128:  # blocks of 8 rows
        out = np.empty((8, 12, size), np.uint8)
        read = bytes_read(lambda: source.set.maps(material, out, 7))
        assert read < 8 * 3 * 8 * size + 4096


def test_what_is_announced_to_the_system_is_what_is_read(large, monkeypatch):
    source = PackedSet(large)
    announced, read = set(), set()
    advise, fill = os.posix_fadvise, ShardReader.fill

    def advising(descriptor, start, nbytes, advice):
        announced.update(range(start, start + nbytes))
        advise(descriptor, start, nbytes, advice)

    def filling(self, out, place, start, what):
        read.update(range(start, start + out.nbytes))
        fill(self, out, place, start, what)

    monkeypatch.setattr(os, "posix_fadvise", advising)
    monkeypatch.setattr(ShardReader, "fill", filling)
    for rows, side in [(32, 32), (128, 128), (30, 128)]:
        announced.clear(), read.clear()
        tops = [128 - rows if side == 128 else 0] * 3
        source.views(source.entries[1], np.empty((3, 3, rows, side), np.uint8), tops)
        place = source.index.place(1)
        assert read - announced == set(range(place.offset, place.offset + place.header))
        assert announced <= read


# -- the format as docs/data.md tells it ----------------------------------------------------


def test_a_stranger_can_read_it(large, large_pictures):
    """With numpy, json and zlib alone."""
    samples, materials, records = (
        np.load(large / f"{name}.npy") for name in ("samples", "materials", "records")
    )
    entries = files(large_pictures, 0)
    for row, sample in zip(samples, entries.entries, strict=True):
        assert (
            row["name"].decode() == sample.name
            and materials[row["material"]]["name"].decode() == sample.material
        )
        places = {"views": row["record"], "maps": materials[row["material"]]["record"]}
        for (name, place), expected in zip(places.items(), entries.load(sample), strict=True):
            record = records[place]
            shard, start = large / "shards" / record["name"].decode(), int(record["offset"])
            header = shard.read_bytes()[start : start + int(record["header"])]
            assert zlib.crc32(header) == record["crc"]
            array = json.loads(header)[name]
            first = start + -(-len(header) // 4096) * 4096
            for level in array["levels"]:
                shape = tuple(level["shape"])
                stored = np.memmap(shard, array["dtype"], "r", first + level["offset"], shape)
                side = shape[-1]
                np.testing.assert_array_equal(
                    stored.reshape(-1, side, side), resize(expected.reshape(-1, *expected.shape[-2:]), side)
                )
                blocks = [
                    channel[row : row + level["rows"]]
                    for channel in stored.reshape(-1, side, side)
                    for row in range(0, side, level["rows"])
                ]
                assert [zlib.crc32(np.ascontiguousarray(block)) for block in blocks] == level["crc"]
            assert [level["shape"][-1] for level in array["levels"]] == [32, 64, 128]


# -- what is altered is refused -------------------------------------------------------------


def test_an_altered_level_is_named_and_refused_and_the_others_are_read(large, tmp_path):
    dest = copied(large, tmp_path)
    rng = np.random.default_rng(0)
    for number, (array, whose) in enumerate(
        [*[("views", f"clean/sample_{i:04d}") for i in range(3)], *[("maps", m) for m in ("steel", "wood")]]
    ):
        place = PackedIndex(dest).place(number)
        shard = dest / "shards" / place.shard
        header = shard.read_bytes()[place.offset : place.offset + place.header]
        for level in decode_header(header)[array]:
            nbytes = int(np.prod(level.shape))
            at = place.offset + 4096 + level.offset + int(rng.integers(nbytes))
            flip(shard, at)
            for size in (32, 64, 128):
                source = PackedSource(dest, 0, size)
                for entry in source.entries:
                    if size == level.side and whose in (entry.key, entry.material):
                        with pytest.raises(
                            UserError,
                            match=rf"{shard.name}: the record of the {array} of .*{whose}.* was altered "
                            rf"\({size} px, at byte \d+",
                        ):
                            source.load(entry)
                    else:
                        source.load(entry)
            flip(shard, at)
        flip(shard, place.offset + int(rng.integers(place.header)))
        with pytest.raises(UserError, match=rf"{whose}.* was altered \(the header"):
            for entry in PackedSource(dest, 0).entries:
                PackedSource(dest, 0).load(entry)
        shutil.copy(large / "shards" / shard.name, shard)


def test_an_altered_row_matters_to_those_who_read_its_block(large, tmp_path):
    dest = copied(large, tmp_path)
    place = PackedIndex(dest).place(0)
    source = PackedSet(dest)
    views = np.empty((3, 3, 128, 128), np.uint8)
    source.views(source.entries[0], views)
    (level,) = [level for level in Record(source._reader, place, "it")._arrays["views"] if level.side == 128]
    row_20 = place.offset + 4096 + level.offset + 20 * 128  # of channel 0
    flip(dest / "shards" / place.shard, row_20)
    rows = np.empty((3, 3, 10, 128), np.uint8)
    for first, well in [(0, True), (24, True), (6, True), (7, False), (21, False), (23, False)]:
        if well:
            source.views(source.entries[0], rows, [first] * 3)
            np.testing.assert_array_equal(rows, views[:, :, first : first + 10])
        else:
            with pytest.raises(UserError, match="was altered"):
                source.views(source.entries[0], rows, [first] * 3)


def test_a_truncated_or_missing_shard_is_named_at_start_and_on_reading(packed, tmp_path):
    dest = copied(packed, tmp_path)
    source = PackedSource(dest, 1)
    for entry in source.entries:
        source.load(entry)
    shard = min((dest / "shards").iterdir())
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(UserError, match=rf"{shard.name}: truncated: \d+ bytes of \d+"):
        source.check_shards()
    for opened in (source, PackedSource(dest, 1)):  # open before, and not
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
    entry, tables = source.entries[3], source.set.index
    row = tables.samples[entry.row]
    used = {
        tables.place(record).shard for record in (row["record"], tables.materials[row["material"]]["record"])
    }
    for shard in (dest / "shards").iterdir():
        if shard.name not in used:
            shard.unlink()
    for ours, other in zip(source.load(entry), PackedSource(packed, 0).load(entry), strict=True):
        np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize("name", ["samples.npy", "materials.npy", "records.npy", "packed.json"])
def test_an_altered_index_is_refused(packed, tmp_path, name):
    dest = copied(packed, tmp_path)
    flip(dest / name, (dest / name).stat().st_size // 2)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        PackedSource(dest, 0)
    (dest / name).unlink()
    with pytest.raises(UserError, match=r"missing|has not come to its end"):
        PackedSource(dest, 0)


def rewrite_head(dest, **fields):
    metadata = json.loads((dest / "packed.json").read_text()) | fields
    del metadata["checksum"]
    (dest / "packed.json").write_text(json.dumps({**metadata, "checksum": metadata_checksum(metadata)}))


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (1, r"an older format, version 1; .* pack it again: python launch/data\.py pack IN OUT DEST"),
        (99, r"a newer format, version 99; .* update this program"),
    ],
)
def test_another_format_version_says_what_to_do(pictures, packed, tmp_path, version, message):
    dest = copied(packed, tmp_path)
    rewrite_head(dest, version=version)
    with pytest.raises(UserError, match=message):
        PackedSource(dest, 0)
    with pytest.raises(UserError, match=message):
        pack(*pictures, dest, progress=False)


@pytest.mark.parametrize(
    "text", ["[]", "1", "{}", '{"version": "x"}', '{"version": null}', "no JSON", "[" * 9999]
)
def test_a_foreign_head_is_named(tmp_path, text):
    (tmp_path / "packed.json").write_text(text)
    with pytest.raises(
        UserError, match=r"packed\.json: not the metadata of a packed set; delete the set and pack it again"
    ):
        PackedSource(tmp_path, 0)


ODD = [None, -1, 1.5, "x", [], {}, [None], {"../../x.npy": "0"}, {"../x.bin": 1}, 2**70, True]


def test_a_forged_set_is_read_or_refused_in_one_line(packed, tmp_path):
    """Its checksums are right: whatever stands there is used as it is, or a `UserError` says no."""
    dest, rng = copied(packed, tmp_path), np.random.default_rng(0)
    good = json.loads((dest / "packed.json").read_text())
    for key in good.keys() - {"version", "checksum"}:
        for value in ODD:
            rewrite_head(dest, **good | {key: value})
            refused_or_read(dest)
    tables = {name: (dest / f"{name}.npy").read_bytes() for name in ("samples", "materials", "records")}
    refused = 0
    for _ in range(150):
        name = list(tables)[rng.integers(3)]
        (dest / f"{name}.npy").write_bytes(forged := altered(tables[name], rng, range(256)))
        rewrite_head(dest, index={**good["index"], f"{name}.npy": hashlib.sha256(forged).hexdigest()})
        refused += refused_or_read(dest)
        (dest / f"{name}.npy").write_bytes(tables[name])
    assert refused > 75
    rewrite_head(dest, **good)
    place = PackedSource(dest, 0).set.index.place(0)
    shard = dest / "shards" / place.shard
    header = shard.read_bytes()[place.offset :][: place.header]
    for _ in range(300):
        forged = altered(header, rng, b'0123456789[]{},":.-e')
        with open(shard, "r+b") as file:
            file.seek(place.offset)
            file.write(forged)
        records = np.load(dest / "records.npy")
        records["crc"][0] = zlib.crc32(forged)
        np.save(dest / "records.npy", records)
        content = (dest / "records.npy").read_bytes()
        rewrite_head(dest, index={**good["index"], "records.npy": hashlib.sha256(content).hexdigest()})
        refused_or_read(dest)


def altered(content, rng, alphabet):
    """With one to three bytes replaced by others of `alphabet`."""
    changed = bytearray(content)
    for at in rng.integers(len(changed), size=rng.integers(1, 4)):
        changed[at] = alphabet[rng.integers(len(alphabet))]
    return bytes(changed)


def refused_or_read(dest):
    """Whether it is refused."""
    try:
        source = PackedSource(dest, 0)
        for entry in source.entries:
            source.load(entry)
    except UserError as error:
        assert "\n" not in str(error)
        return True
    return False


def test_what_is_no_packed_set(pictures, packed, tmp_path):
    with pytest.raises(UserError, match="not a packed set \\(no such folder\\)"):
        PackedSource(tmp_path / "none", 0)
    with pytest.raises(UserError, match=r"not a packed set \(no packed\.json in it\)"):
        PackedSource(pictures[0], 0)
    pack(*write_set(tmp_path / "clean", size=32), tmp_path / "dest", progress=False)
    with pytest.raises(
        UserError, match=r"no samples for data\.render_curriculum = 2 \(dirty renders\); .* 3 of the other"
    ):
        PackedSource(tmp_path / "dest", 2)


# -- materials alone, and what stands beside the pictures ------------------------------------


def test_a_set_may_hold_materials_alone_of_several_sides(tmp_path):
    rng = np.random.default_rng(0)
    maps = {
        name: rng.integers(0, 256, (8, side, side), np.uint8) for name, side in [("oak", 512), ("tin", 256)]
    }
    (tmp_path / "shards").mkdir()
    writer = ShardWriter(tmp_path / "shards", "a", 1 << 30)
    places = {name: writer.append({"maps": array}) for name, array in maps.items()}
    write_index(tmp_path, [], [], places, sides=[512, 256], origin="")
    with pytest.raises(UserError, match=r"its pictures have 256, 512 px; set data\.image_size"):
        PackedSet(tmp_path)
    found = PackedSet(tmp_path, 256)
    assert found.materials == ["oak", "tin"] and len(found.entries) == 0
    out = np.empty((8, 256, 256), np.uint8)
    for i, array in enumerate(maps.values()):
        found.maps(i, out)
        np.testing.assert_array_equal(out, resize(array, 256))
    with pytest.raises(UserError, match=r"no samples .* it holds 2 materials without renders"):
        PackedSource(tmp_path, 0, 256)


def test_a_record_holds_several_arrays_of_any_kind(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "views": rng.integers(0, 256, (3, 3, 512, 512), np.uint8),
        "height": rng.integers(0, 65536, (1, 300, 200), np.uint16),
        "light": rng.normal(size=(5, 3)).astype(np.float32),
    }
    writer = ShardWriter(tmp_path, "a", 1 << 30)
    places = [writer.append(arrays), writer.append({"light": arrays["light"]})]
    writer.close()
    record = Record(ShardReader(tmp_path), places[0], "it")
    for name, array in arrays.items():
        out = np.empty_like(array)
        record.read(name, out)
        np.testing.assert_array_equal(out, array)
    with pytest.raises(UserError, match="it is stored at 256, 512 px, not at 300"):
        record.read("views", np.empty((3, 3, 300, 300), np.uint8))
    with pytest.raises(UserError, match="another kind"):
        record.read("height", np.empty((1, 300, 200), np.uint8))
    with pytest.raises(UserError, match="holds no views"):
        Record(ShardReader(tmp_path), places[1], "it").read("views", np.empty((3, 3, 512, 512), np.uint8))


def some_columns(samples, seed=0):
    cameras = np.random.default_rng(seed).normal(size=(len(samples), 3, ENCODED)).astype(np.float32)
    cameras[1, 2] = 0  # a view without a camera
    return {"cameras": cameras, "names": np.arange(len(samples))}


def test_cameras_stand_beside_the_pictures_and_may_come_later(pictures, packed, tmp_path):
    dest = copied(packed, tmp_path)
    shards = sorted((path, path.stat().st_mtime_ns) for path in (dest / "shards").iterdir())
    assert PackedSet(dest).column("cameras") is None
    for seed in (0, 1):
        assert pack(
            *pictures, dest, columns=lambda samples, seed=seed: some_columns(samples, seed), progress=False
        ).clean
        found = PackedSet(dest)
        for name, expected in some_columns(found.entries, seed).items():
            assert found.column(name).dtype == expected.dtype
            assert found.column(name).tobytes() == expected.tobytes()
    assert_same_as_files(dest, pictures)
    assert sorted((path, path.stat().st_mtime_ns) for path in (dest / "shards").iterdir()) == shards
    flip(dest / "cameras.npy", 2000)
    with pytest.raises(UserError, match=r"cameras\.npy: altered"):
        PackedSet(dest)


@pytest.mark.parametrize(
    "columns",
    [
        {"cameras": np.zeros((12, 3), np.float32)},
        {"cameras": np.zeros((11, 3, ENCODED), np.float32)},
        {"cameras": np.zeros((12, 3, ENCODED))},
        {"cameras": np.full((12, 3, ENCODED), np.nan, np.float32)},
        {"anything": np.zeros(11)},
    ],
)
def test_columns_that_do_not_fit_are_refused(pictures, packed, tmp_path, columns):
    dest = copied(packed, tmp_path)
    pack(*pictures, dest, columns=lambda _: columns, progress=False)
    with pytest.raises(UserError, match="its index doesn't hang together"):
        PackedSource(dest, 0)
