"""Are all nodes alike and fit for a run: what every rank sees, in one table."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.distributed as dist

from neuropbr_dist.ranks import all_gather_object
from neuropbr_dist.table import aligned

GIB = 2**30
MOST_SKEW_S = 1.0
"""Clocks further apart than this are a finding: logs, time limits and `make` go by them."""
PINGS = 8
ALL_REDUCE_BYTES = {"cuda": 256 * 2**20, "cpu": 16 * 2**20}
ROUNDS = 5
ALIKE = ("Python", "torch", "CUDA", "NCCL", "deepspeed", "GPU", "code", "sample")
"""Columns that must be the same on every rank."""


@dataclass
class Examination:
    """Examination of what one rank sees."""

    host: str
    facts: dict[str, str]
    """Column to value, for the columns of `ALIKE`."""
    skew_s: float = 0.0
    """Seconds that this clock is ahead of rank 0's."""
    free_bytes: int = 0
    all_reduce_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    """Faults of this rank by itself."""


def examine(
    device: torch.device, code: str, sample: Sequence[Path], folder: Path, needed_bytes: int
) -> list[Examination]:
    """Return every rank's examination, in rank order. Collective.

    Args:
        code: hash of the program.
        sample: files of one sample of the data set; none for built-in materials.
        folder: the run's folder, made if missing.
        needed_bytes: what its saves will take.
    """
    examination = Examination(socket.gethostname(), versions(device) | {"code": code})
    examination.facts["sample"] = checksum(sample, examination.faults)
    examination.free_bytes = free_space(folder, needed_bytes, examination.faults)
    examination.skew_s = clock_skew()
    if abs(examination.skew_s) > MOST_SKEW_S:
        examination.faults.append(f"its clock is {examination.skew_s:+.1f} s off rank 0's")
    examination.all_reduce_s = all_reduce_seconds(device)
    return all_gather_object(examination)


def versions(device: torch.device) -> dict[str, str]:
    """Return versions of what a run stands on, here; `-` or `none` for what is not there."""
    try:
        deepspeed = version("deepspeed")
    except PackageNotFoundError:
        deepspeed = "none"
    cuda = device.type == "cuda"
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda) if cuda else "-",
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())) if cuda else "-",
        "deepspeed": deepspeed,
        "GPU": torch.cuda.get_device_name(device) if cuda else "-",
    }


def checksum(files: Sequence[Path], faults: list[str]) -> str:
    """Return a hash of the files' contents, 12 hex digits; a file that can't be read goes to `faults`."""
    if not files:
        return "built-in"
    digest = hashlib.sha256()
    for path in files:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
            return "missing"
    return digest.hexdigest()[:12]


def free_space(folder: Path, needed_bytes: int, faults: list[str]) -> int:
    """Return the free bytes at `folder`; one that can't be written to, or is too small, goes to `faults`."""
    probe = folder / f".doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        faults.append(f"{folder} cannot be written to: {error.strerror}")
        return 0
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        faults.append(f"{folder}: {free / GIB:.1f} GiB free, its saves need {needed_bytes / GIB:.1f}")
    return free


def clock_skew() -> float:
    """Return how many seconds this rank's clock is ahead of rank 0's. Collective.

    Rank 0's answer is taken as given at half a round trip; of a few trips the shortest counts.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return 0.0
    rank, skew = dist.get_rank(), 0.0
    for other in range(1, dist.get_world_size()):
        if rank == 0:
            for _ in range(PINGS):
                dist.recv(torch.empty(1, dtype=torch.float64), src=other)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), dst=other)
        elif rank == other:
            trips = []
            for _ in range(PINGS):
                sent, answer = time.time(), torch.empty(1, dtype=torch.float64)
                dist.send(torch.tensor([sent], dtype=torch.float64), dst=0)
                dist.recv(answer, src=0)
                got = time.time()
                trips.append((got - sent, (sent + got) / 2 - float(answer)))
            skew = min(trips)[1]
    return skew


def all_reduce_seconds(device: torch.device) -> float:
    """Return the median seconds of an all-reduce of `ALL_REDUCE_BYTES` over all ranks. Collective."""
    if not dist.is_initialized():
        return 0.0
    load = torch.ones(ALL_REDUCE_BYTES[device.type] // 4, device=device)
    times = []
    for _ in range(1 + ROUNDS):  # the first connects
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        dist.all_reduce(load)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
        load.fill_(1)
    return statistics.median(times[1:])


# -- the table -------------------------------------------------------------------------------


@dataclass
class Row:
    """Ranks of one host that see the same."""

    host: str
    ranks: list[int]
    facts: dict[str, str]
    faults: list[str]
    examinations: list[Examination]


def diagnose(examinations: Sequence[Examination]) -> tuple[list[str], bool]:
    """Return the table's lines, and whether all is well. The most common value of a column is the right one."""
    usual = {name: Counter(r.facts[name] for r in examinations).most_common(1)[0][0] for name in ALIKE}
    rows: dict[tuple[str, ...], Row] = {}
    for rank, examination in enumerate(examinations):
        key = (examination.host, *examination.facts.values(), *examination.faults)
        row = rows.setdefault(key, Row(examination.host, [], examination.facts, examination.faults, []))
        row.ranks.append(rank)
        row.examinations.append(examination)
    header = ["", "node", "ranks", *ALIKE, "skew ms", "free GiB", "all-reduce ms"]
    cells, findings = [header], []
    for row in rows.values():
        odd = [name for name in ALIKE if row.facts[name] != usual[name]]
        bad = bool(odd or row.faults)
        cells.append(
            ["!" if bad else "", row.host, spans(row.ranks), *(row.facts[n] for n in ALIKE), *figures(row)]
        )
        place = f"! {row.host} (rank {spans(row.ranks)}): "
        findings += [place + f"{name} {row.facts[name]}, elsewhere {usual[name]}" for name in odd]
        findings += [place + fault for fault in row.faults]
    return aligned(cells) + findings, not findings


def figures(row: Row) -> list[str]:
    """Return a group's largest clock skew in ms, least free space in GiB and slowest all-reduce in ms."""
    furthest = max((r.skew_s for r in row.examinations), key=abs)
    return [
        f"{1000 * furthest:+.1f}",
        f"{min(r.free_bytes for r in row.examinations) / GIB:.1f}",
        f"{1000 * max(r.all_reduce_s for r in row.examinations):.1f}",
    ]


def spans(ranks: Sequence[int]) -> str:
    """Return rank numbers as text, [0, 1, 2, 5] as 0-2,5."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def bandwidth_line(examinations: Sequence[Examination], device_type: str) -> str:
    """Return a line about the slowest rank's all-reduce.

    Bus bandwidth is what each link carries, 2 (n - 1) / n of the message.
    """
    count, seconds = len(examinations), max(r.all_reduce_s for r in examinations)
    if count == 1 or seconds == 0:
        return "All-reduce: one rank, nothing to measure"
    size = ALL_REDUCE_BYTES[device_type]
    rate = size / seconds / 1e9
    return (
        f"All-reduce of {size / 2**20:.0f} MiB over {count} ranks: {rate:.2f} GB/s, "
        f"bus bandwidth {rate * 2 * (count - 1) / count:.2f} GB/s"
    )
