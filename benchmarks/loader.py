"""How fast samples come from PNG files and from a packed set, at its own side and at its smallest, and in how much memory.

Figures are medians of one run, taken in turns, from the disk cache. A sample is three views
and four maps.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from benchmarks.options import add_size, fields_of, measurement
from benchmarks.setting import write_figures
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.config import DataConfig
from neuropbr_dist.data.builtin import generate
from neuropbr_dist.data.cameras import NOT_KNOWN
from neuropbr_dist.data.files.entries import Sample
from neuropbr_dist.data.files.layout import scan
from neuropbr_dist.data.files.verify import verify
from neuropbr_dist.data.load import empty, load_batch
from neuropbr_dist.data.loader import batches_of, training_slots
from neuropbr_dist.data.order import SampleOrder, Slot
from neuropbr_dist.data.packed.index import SHARDS, write_index
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.packed.records import level_sides
from neuropbr_dist.data.packed.shards import Place, used_bytes
from neuropbr_dist.data.packed.source import PackedSource
from neuropbr_dist.data.sources import BUILTIN_SIZE, FileSource, Source, fingerprint
from neuropbr_dist.data.split import split
from neuropbr_dist.errors import UserError
from neuropbr_dist.processes import usable_cores

MIB = 2**20
WORKERS = 4
MEMORY_EPOCHS = 10
LARGE_SET = 100_000
SET_HERE = {
    "data.packed_dir": "the set is packed here; name PNG files",
    "data.builtin_count": "--count says it",
}
SAMPLES_PER_MATERIAL = 10


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py loader`."""
    p = measurement(__doc__, prog)
    add_size(p, BUILTIN_SIZE)
    p.add_argument("--count", type=int, default=8, metavar="N", help="built-in samples; default %(default)s")
    p.add_argument("--rounds", type=int, default=4, metavar="N", help="over all samples, one core")
    p.add_argument("--seconds", type=float, default=20, metavar="S", help="with worker processes")
    p.add_argument("--folder", type=Path, metavar="DIR", help="where sets are made; default: temporary")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Measure, and print a table: of the named PNG files at their own size, or of built-in materials."""
    args = parser(prog).parse_args(argv)
    data = fields_of(args, SET_HERE).configuration().data
    if data.input_dir is not None and data.image_size is not None:
        raise UserError(
            "data.image_size is for built-in materials here; PNG files are read at their own size"
        )
    torch.set_num_threads(1)
    with TemporaryDirectory(dir=args.folder) as scratch:
        folder = Path(scratch)
        renders, maps = data.input_dir, data.output_dir
        if renders is None or maps is None:
            size, cores = data.image_size or BUILTIN_SIZE, usable_cores()
            generate(
                folder / "png", count=args.count, size=size, seed=0, workers=cores, curriculum_dirty=False
            )
            renders, maps = str(folder / "png/input"), str(folder / "png/output")
        figures: dict[str, Any] = {"verify": verification(renders, maps)}
        sources = open_sources(renders, maps, folder)
        packed = [name for name in sources if name.startswith("packed")]
        figures["one core"] = one_core(sources, args.rounds)
        figures["bytes"] = {name: bytes_read(sources[name]) for name in packed}
        figures["workers"] = {name: with_workers(sources[name], args.seconds) for name in ("png", *packed)}
        figures["memory"] = {name: memory_by_epoch(sources[name]) for name in ("png", "packed")}
        figures["large set"] = large_set(folder / "large")
    print(table(figures))
    write_figures(args.out, figures)


def open_sources(input_dir: str, output_dir: str, folder: Path) -> dict[str, Source]:
    """The same samples as PNG, PNG with cached materials, and packed at the largest and the smallest side; by name."""
    entries = scan(input_dir, output_dir)
    with Image.open(entries[0].views[0]) as picture:
        size = picture.width
    pack(input_dir, output_dir, folder / "packed", workers=usable_cores(), skip_faulty=True)
    sources: dict[str, Source] = {
        "png": FileSource(entries, size, resize=False),
        "png, materials cached": FileSource(entries, size, resize=False, cache_mib=1 << 16),
        "packed": PackedSource(folder / "packed", 0),
    }
    smallest = level_sides(size)[-1]
    if smallest < size:
        sources[f"packed, {smallest} px"] = PackedSource(folder / "packed", 0, smallest)
    return sources


# -- one core ------------------------------------------------------------------------------


def one_core(sources: dict[str, Source], rounds: int) -> dict[str, float]:
    """Way -> median seconds of a core for a sample, as a batch of one in this process."""
    count = len(sources["packed"].entries)
    ways: dict[str, Callable[[int], object]] = {
        "PIL, ToTensor, Normalize": partial(plain, sources["png"].entries),
    }
    for name, source in sources.items():
        ways[name] = partial(_load, source)
        if isinstance(source, PackedSource):
            ways[copy_of(name)] = copier(source)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(rounds + 1):
        for i in range(count):
            for way, load in ways.items():
                began = time.process_time()
                load(i)
                if round_:  # the first fills caches
                    times[way].append(time.process_time() - began)
    return {way: statistics.median(taken) for way, taken in times.items()}


def plain(entries: Sequence[Sample], index: int) -> object:
    """The usual dataset: every picture as RGB floats, normalised on the host, collated."""
    from torchvision.transforms.functional import normalize, to_tensor

    def read(path: Path) -> torch.Tensor:
        return normalize(to_tensor(Image.open(path).convert("RGB")), [0.5] * 3, [0.5] * 3)

    sample = entries[index]
    views = torch.stack([read(path) for path in sample.views])
    maps = torch.cat(
        [read(path)[:channels] for path, channels in zip(sample.maps, (3, 1, 1, 3), strict=True)]
    )
    return default_collate([(views, maps)])


def _load(source: Source, index: int) -> object:
    return load_batch(source, source.entries, [Slot(0, index, 1.0)])


COPY = "copy of the same bytes"


def copy_of(way: str) -> str:
    """The copy that a way is held against: of the bytes of a packed source, or of the set's own side."""
    return way.replace("packed", COPY) if way.startswith(("packed", COPY)) else COPY


def copier(source: PackedSource) -> Callable[[int], object]:
    """Fresh copies of as many bytes as the samples have, from a memory-mapped file."""
    shards = sorted((source.folder / SHARDS).iterdir())
    mapped = [np.memmap(shard, np.uint8, "r") for shard in shards]
    nbytes = 17 * source.size**2

    def copy(index: int) -> object:
        whole = mapped[index % len(mapped)]
        start = index * nbytes % max(1, len(whole) - nbytes)
        batch = empty(nbytes)
        np.copyto(batch.numpy()[: len(whole) - start], whole[start : start + nbytes])
        return batch

    return copy


def bytes_read(source: Source) -> float:
    """Bytes that this process reads from files for a sample, on average over all."""
    before = read_so_far()
    for i in range(len(source.entries)):
        _load(source, i)
    return (read_so_far() - before) / len(source.entries)


def read_so_far() -> int:
    """Bytes that this process has read from files; this file of some 100 bytes counts as well."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar:"))


# -- processes -----------------------------------------------------------------------------


def batches(source: Source, workers: int) -> AbstractContextManager[Iterator[Any]]:
    """Endless batches of one sample in `workers` processes."""
    order = SampleOrder(len(source.entries), global_batch=1, epochs=10**6, seed=0)
    slots = training_slots(order, 0, world=1, rank=0, batch_size=1)
    read = DataConfig(num_workers=workers, prefetch_factor=2)
    return batches_of(read, source, source.entries, slots, torch.device("cpu"))


def with_workers(source: Source, seconds: float) -> float:
    """Samples a second out of `WORKERS` processes, once they run."""
    with batches(source, WORKERS) as loader:
        for _ in range(2 * WORKERS):
            next(loader)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            next(loader)
            count += 1
        return count / (time.perf_counter() - began)


def memory_by_epoch(source: Source) -> list[float]:
    """Resident MiB of one loader process (its own and the maps it shares) after each epoch."""
    found = []
    with batches(source, 1) as loader:
        for _ in range(MEMORY_EPOCHS):
            for _ in range(len(source.entries)):
                next(loader)
            (worker,) = multiprocessing.active_children()
            found.append(status(worker.pid, "VmRSS"))
    return found


def status(pid: int | None, name: str) -> float:
    """A line of /proc/PID/status in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def verification(input_dir: str, output_dir: str) -> dict[str, float]:
    """Share of all cores' time that `verify` uses, and its pace."""
    cores = usable_cores()
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    verification = verify(input_dir, output_dir, workers=cores)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cores": cores, "seconds": seconds, "busy": busy / seconds / cores, "files": verification.files}


# -- a large set ---------------------------------------------------------------------------


def large_set(folder: Path, samples: int = LARGE_SET) -> dict[str, float]:
    """Opening, splitting and fingerprinting a set of so many `samples`, in a fresh process."""
    (folder / SHARDS).mkdir(parents=True)
    size, per_shard = 2048, 20
    entries = [
        (f"sample_{i:07d}", "clean", f"material_{i // SAMPLES_PER_MATERIAL:06d}") for i in range(samples)
    ]

    pixels = sum(side**2 for side in level_sides(size))

    def place(kind: int, channels: int, i: int) -> Place:
        nbytes = channels * pixels
        return Place(f"{kind:04d}-{i // per_shard:05d}.bin", i % per_shard * nbytes, nbytes, 4000, i)

    views = [place(0, 9, i) for i in range(samples)]
    names = sorted({material for _, _, material in entries})
    maps = {name: place(1, 8, i) for i, name in enumerate(names)}
    columns = {"cameras": np.zeros((samples, *NOT_KNOWN.shape), NOT_KNOWN.dtype)}
    write_index(folder, entries, views, maps, columns, sides=[size], origin="synthetic")
    for shard, nbytes in used_bytes([*views, *maps.values()]).items():  # as long as real ones, and empty
        with open(folder / SHARDS / shard, "wb") as file:
            file.truncate(nbytes)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_open_large, args=(folder, theirs))
    process.start()
    figures = ours.recv()
    process.join()
    return figures


def _open_large(folder: Path, pipe: Any) -> None:
    before, began = status(os.getpid(), "VmRSS"), time.perf_counter()
    source = PackedSource(folder, 0)
    source.check_shards()
    train, val = split(source.entries, 0.1, "material", 0)
    fingerprint(train, source.size)
    seconds = time.perf_counter() - began
    figures = {
        "seconds": seconds,
        "MiB": status(os.getpid(), "VmHWM") - before,
        "samples": len(train) + len(val),
    }
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_touch, args=(train, theirs))
    worker.start()
    figures["own MiB"] = ours.recv()
    worker.join()
    pipe.send(figures)


def _touch(entries: Sequence[Any], pipe: Any) -> None:
    """How much of its own memory a forked worker takes to look at every entry."""
    before = _private()
    for sample in entries:
        sample.key  # noqa: B018
    pipe.send(_private() - before)


def _private() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(float(line.split()[1]) / 1024 for line in lines if line.startswith("Private_Dirty"))


# -- table ---------------------------------------------------------------------------------


def table(figures: dict[str, Any]) -> str:
    """The figures as lines for people."""
    seconds = figures["one core"]
    base = seconds["PIL, ToTensor, Normalize"]
    lines = [f"{'one core, a sample':32}{'ms':>9}{'x plain':>9}{'of a copy':>11}{'MB read':>9}"]
    for way, taken in seconds.items():
        copy = seconds[copy_of(way)]
        read = f"{figures['bytes'][way] / 1e6:9.1f}" if way in figures["bytes"] else ""
        lines.append(f"{way:32}{1e3 * taken:9.1f}{base / taken:9.1f}{copy / taken:11.0%}{read}")
    for name, rate in figures["workers"].items():
        lines.append(f"{WORKERS} processes, {name}: {rate:.1f} samples/s")
    for name, epochs in figures["memory"].items():
        shown = ", ".join(f"{mib:.0f}" for mib in epochs)
        lines.append(f"resident MiB of a loader process after each epoch, {name}: {shown}")
    large, check = figures["large set"], figures["verify"]
    lines.append(
        f"opening {large['samples']} samples: {large['seconds']:.2f} s, {large['MiB']:.0f} MiB; "
        f"a worker that looks at every one takes {large['own MiB']:.1f} MiB of its own"
    )
    lines.append(
        f"verify: {check['files']} files in {check['seconds']:.1f} s, {check['busy']:.0%} of {check['cores']} cores busy"
    )
    return "\n".join(lines)
