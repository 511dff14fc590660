"""Containers for a packed set: how fast one core fills a batch from each, in one run, from the disk cache.

    python -m venv lab && lab/bin/pip install . zarr litdata mosaicml-streaming webdataset
    lab/bin/python benchmarks/containers.py FOLDER

Every container holds the same records of random bytes, one a sample at 2048²: three views and
four maps. Each is asked for them in the same shuffled order; what it hands out is copied into
the batch. webdataset reads in order only.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser
from neuropbr_dist.data.packed.shards import Record, ShardReader, ShardWriter

SIDE, SAMPLES, ROUNDS = 2048, 12, 5
SHAPE = (17, SIDE, SIDE)
NBYTES = 17 * SIDE * SIDE

Read = Callable[[int], np.ndarray]


def memory_map(folder: Path, records: list[np.ndarray]) -> Read:
    """Write one array to disk and map it: the yardstick. Return a reader, place -> record (17, S, S) uint8."""
    np.stack(records).tofile(folder / "plain.bin")
    mapped = np.memmap(folder / "plain.bin", np.uint8, "r", shape=(len(records), *SHAPE))
    return lambda i: mapped[i]


def litdata(folder: Path, records: list[np.ndarray]) -> Read:
    """Write chunks of litdata, and return a reader by its own streaming dataset."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    (folder / "litdata").mkdir()
    writer = BinaryWriter(str(folder / "litdata"), chunk_bytes=1 << 30)
    for i, record in enumerate(records):
        writer.add_item(i, {"x": torch.from_numpy(record)})
    writer.done()
    writer.merge()
    data = StreamingDataset(str(folder / "litdata"))
    return lambda i: data[i]["x"].numpy()


def zarr(folder: Path, records: list[np.ndarray], checksums: bool) -> Read:
    """Write one Zarr chunk a record, uncompressed, with `checksums` a CRC-32C each; return a reader."""
    import zarr as library
    from zarr.codecs import Crc32cCodec

    codecs = [Crc32cCodec()] if checksums else None
    shape, chunks = (len(records), *SHAPE), (1, *SHAPE)
    path = folder / f"zarr-{checksums}"
    array = library.create_array(path, shape=shape, chunks=chunks, dtype="u1", compressors=codecs)
    for i, record in enumerate(records):
        array[i] = record
    opened = library.open_array(path, mode="r")
    return lambda i: opened[i]


def mosaicml_streaming(folder: Path, records: list[np.ndarray]) -> Read:
    """Write MDS shards, and return a reader by the library's own dataset."""
    from streaming import MDSWriter, StreamingDataset

    out = str(folder / "mds")
    with MDSWriter(out=out, columns={"x": "bytes"}, compression=None, size_limit=1 << 30) as writer:
        for record in records:
            writer.write({"x": record.tobytes()})
    data = StreamingDataset(local=out, shuffle=False, batch_size=1)
    return lambda i: np.frombuffer(data[i]["x"], np.uint8).reshape(SHAPE)


def webdataset(folder: Path, records: list[np.ndarray]) -> Read:
    """Write a tar file, and return a reader that goes through it in order: it has no other."""
    import webdataset as library

    with library.TarWriter(str(folder / "w.tar")) as writer:
        for i, record in enumerate(records):
            writer.write({"__key__": f"{i:04d}", "x.bin": record.tobytes()})
    data = library.WebDataset(str(folder / "w.tar"), shardshuffle=False, empty_check=False).repeat()
    samples = iter(data)
    return lambda _: np.frombuffer(next(samples)["x.bin"], np.uint8).reshape(SHAPE)


def shards(folder: Path, records: list[np.ndarray]) -> Callable[[int, np.ndarray], None]:
    """Write this project's shard files; return what reads a place's record, at its own side, into a (17, S, S) uint8 array."""
    (folder / "shards").mkdir()
    writer = ShardWriter(folder / "shards", "0", 1 << 30)
    places = [writer.append({"x": record}) for record in records]
    reader = ShardReader(folder / "shards")
    return lambda i, batch: Record(reader, places[i], str(i)).read("x", batch)


def copied(read: Read, batch: np.ndarray) -> Callable[[int], None]:
    """Return what copies the record that `read` hands out into `batch`, (17, S, S) uint8."""
    return lambda i: np.copyto(batch, read(i))


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py containers`."""
    p = new_parser(__doc__ or "", prog)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    add_debug(p)
    p.add_argument("folder", type=Path, metavar="FOLDER", help="a new one, for the containers")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Make every container in a folder, read from them in turns, print a table."""
    folder: Path = parser(prog).parse_args(argv).folder
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    records = [rng.integers(0, 256, SHAPE, dtype=np.uint8) for _ in range(SAMPLES)]
    reads: dict[str, Read] = {
        "memory-mapped array": memory_map(folder, records),
        f"litdata {version('litdata')}": litdata(folder, records),
        f"zarr {version('zarr')}, uncompressed": zarr(folder, records, False),
        f"zarr {version('zarr')}, CRC-32C": zarr(folder, records, True),
        f"mosaicml-streaming {version('mosaicml-streaming')}": mosaicml_streaming(folder, records),
        f"webdataset {version('webdataset')}, in order": webdataset(folder, records),
    }
    ours, batch = shards(folder, records), np.zeros(SHAPE, np.uint8)
    fill: dict[str, Callable[[int], None]] = {name: copied(read, batch) for name, read in reads.items()}
    fill["these shards, CRC-32 of every read"] = lambda i: ours(i, batch)
    times: dict[str, list[float]] = {name: [] for name in fill}
    for round_ in range(ROUNDS):
        order = random.Random(round_).sample(range(SAMPLES), SAMPLES)
        for name, one in fill.items():
            for i in sorted(order) if "in order" in name else order:
                began = time.perf_counter()
                one(i)
                if round_:  # the first maps and caches
                    times[name].append(time.perf_counter() - began)
                assert (batch[:, ::97] == records[i][:, ::97]).all(), name
    base = statistics.median(times["memory-mapped array"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:40} {1e3 * median:7.1f} ms {NBYTES / median / 1e9:6.1f} GB/s {median / base:6.2f} x")


if __name__ == "__main__":
    run()
