"""What a rank reads of a sample that several share by rows: bytes, its core's time, and what goes to the device.

Figures are means over the strips of a picture and over built-in samples, from the disk cache, on one core, the ways taken in
turns. Beside each way stands the whole sample's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.loader import read_so_far
from benchmarks.setting import write_figures
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import new_parser
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.batch import Bands, MicroBatch
from neuropbr_dist.data.builtin import generate
from neuropbr_dist.data.builtin.cache import sample_cameras
from neuropbr_dist.data.files.layout import scan
from neuropbr_dist.data.load import load_batch
from neuropbr_dist.data.order import Slot
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.packed.source import PackedSource
from neuropbr_dist.data.sources import BUILTIN_SIZE, FileSource, Source
from neuropbr_dist.materials.cameras import wide_cameras
from neuropbr_dist.materials.footprint import Window, rows_seen
from neuropbr_dist.materials.plane import WRAP, encode
from neuropbr_dist.processes import usable_cores

VALIDATION = Alignment(min_confidence=0.5)
TRAINING = Alignment(min_confidence=0.5, seed=1, ignore_wrap=0.5, drop_views=0.2)
TURNED = Augmentation(1, flips=True, rotations=True)


class Way(NamedTuple):
    """A way of reading samples."""

    name: str
    source: Source
    alignment: Alignment | None
    augmentation: Augmentation | None = None

    def load(self, index: int, epoch: int, rows: tuple[int, int] | None) -> MicroBatch:
        slots = [Slot(epoch, index, 1.0)]
        return load_batch(
            self.source, self.source.entries, slots, self.augmentation, self.alignment, rows=rows
        )


class Figures(NamedTuple):
    """What a rank reads of a sample, on average."""

    ranks: int
    """That share the sample."""
    read: float
    """Bytes from files."""
    seconds: float
    """Of a core."""
    sent: float
    """Bytes that go to the device."""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `python benchmarks/strip_reading.py`."""
    p = new_parser(__doc__ or "", prog)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument("--size", type=int, default=BUILTIN_SIZE, metavar="PX", help="default %(default)s")
    p.add_argument(
        "--ranks", type=int, nargs="+", default=[2, 4], metavar="K", help="ranks a sample; default 2 4"
    )
    p.add_argument("--count", type=int, default=4, metavar="N", help="samples; default %(default)s")
    p.add_argument("--rounds", type=int, default=4, metavar="N", help="over all samples; default %(default)s")
    p.add_argument(
        "--folder", type=Path, metavar="DIR", help="where the set is made, or lies; default: temporary"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Measure, and print a table."""
    args = parser(prog).parse_args(argv)
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch:
        found = {
            way.name: measured(way, [1, *args.ranks], args.rounds)
            for way in ways(args.folder or Path(scratch), args.size, args.count)
        }
    print(table(found), table_of_views(args.ranks), sep="\n\n")
    write_figures(args.out, {name: [each._asdict() for each in figures] for name, figures in found.items()})


def ways(folder: Path, size: int, count: int) -> list[Way]:
    """Built-in samples, as files and packed; what `folder` has of them stays."""
    pictures = folder / "png" / "input", folder / "png" / "output"
    if not pictures[0].exists():
        generate(
            folder / "png", count=count, size=size, seed=0, workers=usable_cores(), curriculum_dirty=False
        )
    pack(*pictures, folder / "packed", workers=usable_cores(), progress=False)
    packed, files = PackedSource(folder / "packed", 0, size), FileSource(scan(*pictures), size, resize=False)
    return [
        Way("packed, views as they are", packed, None),
        Way("packed, turned, views as they are", packed, None, TURNED),
        Way("packed, on the plane, validation", packed, VALIDATION),
        Way("packed, on the plane", packed, TRAINING),
        Way("packed, turned, on the plane", packed, TRAINING, TURNED),
        Way("PNG, views as they are", files, None),
        Way("PNG, on the plane", files, TRAINING),
    ]


def measured(way: Way, numbers: Sequence[int], rounds: int) -> list[Figures]:
    """Return figures for each number of ranks that share a sample; 1: it is read whole. Rounds are epochs."""
    side, count = way.source.size, len(way.source.entries)
    loads: dict[int, list[tuple[int, float, int]]] = {k: [] for k in numbers}
    for epoch in range(rounds + 1):  # the first fills caches
        for index in range(count):
            for k in numbers:
                for i in range(k):
                    rows = None if k == 1 else (i * side // k, (i + 1) * side // k)
                    load = taken(way, index, epoch, rows)
                    loads[k] += [load] if epoch else []
    return [Figures(k, *map(statistics.mean, zip(*loads[k], strict=True))) for k in numbers]


def taken(way: Way, index: int, epoch: int, rows: tuple[int, int] | None) -> tuple[int, float, int]:
    """Return bytes that are read for a sample, seconds of a core, and bytes of its pictures."""
    read, began = read_so_far(), time.process_time()
    batch = way.load(index, epoch, rows)
    seconds = time.process_time() - began
    views = batch.views.pixels if isinstance(batch.views, Bands) else batch.views
    assert views is not None
    return read_so_far() - read, seconds, views.numel() + batch.maps.numel()


def table_of_views(numbers: Sequence[int], size: int = BUILTIN_SIZE, samples: int = 100) -> str:
    """Return Markdown: the share of a view's rows that a strip projects to, by kind of camera, on average."""
    rng = np.random.default_rng(0)
    kinds = {
        "built-in": [c for i in range(samples) for c in sample_cameras(0, i).encoded("clean")],
        "as people take pictures": [
            encode(c.on_plane(), wrap=True) for _ in range(samples) for c in wide_cameras(rng)
        ],
    }
    lines = ["| cameras | plane | " + " | ".join(f"K = {k}" for k in numbers) + " |"]
    lines += ["|---" * (2 + len(numbers)) + "|"]
    for kind, cameras in kinds.items():
        for wrap, plane in ((1, "repeats"), (0, "doesn't repeat")):
            for camera in cameras:
                camera[WRAP] = wrap
            shares = [f"{share_of_rows(cameras, k, size):.2f}" for k in numbers]
            lines.append("| " + " | ".join([kind, plane, *shares]) + " |")
    return "\n".join(lines)


def share_of_rows(cameras: Sequence[np.ndarray], ranks: int, size: int) -> float:
    """Return the share of a view's rows that a rank among so many reads."""
    windows = [Window((i * size // ranks, (i + 1) * size // ranks), (0, size)) for i in range(ranks)]
    bands = [rows_seen(camera, window, size) for camera in cameras for window in windows]
    return statistics.mean((last - first) / size for first, last in bands)


def table(found: dict[str, list[Figures]]) -> str:
    """Return Markdown: the whole sample, and shares of it that a rank takes where several share it."""
    (figures, *_) = found.values()
    lines = [
        "| | whole: MB read | ms of a core | "
        + " | ".join(f"K = {f.ranks}: read | ms | to the device" for f in figures[1:])
        + " |"
    ]
    lines += ["|---" * (3 + 3 * len(figures[1:])) + "|"]
    for name, (whole, *shared) in found.items():
        cells = [name, f"{whole.read / 1e6:.1f}", f"{whole.seconds * 1e3:.1f}"]
        for each in shared:
            cells += [
                f"{each.read / whole.read:.2f}",
                f"{each.seconds / whole.seconds:.2f}",
                f"{each.sent / whole.sent:.2f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run()
