"""Is a checkpoint what its manifest says?"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch.distributed as dist

from neuropbr_dist.checkpoint.manifest import (
    CONFIG,
    MANIFEST,
    STATE,
    TENSORS,
    Damaged,
    Manifest,
    file_fault,
    read_config,
    read_manifest,
    read_state,
    read_tensors,
)
from neuropbr_dist.checkpoint.storage import THREADS
from neuropbr_dist.ranks import all_gather_object, on_each_rank, rank, world_size


def verify(
    checkpoint: str | os.PathLike, *, process_group: dist.ProcessGroup | None = None, alone: bool = False
) -> list[str]:
    """Return the faults of a checkpoint, each as `file: fault`; empty if it is sound. Collective unless `alone`.

    Every byte is read: missing, extra, truncated and altered files are found. Ranks share the files.

    Args:
        process_group: None for all ranks.
        alone: this process checks all files by itself.

    Raises:
        UserError: another format version.
    """
    folder = Path(checkpoint)
    if alone:
        return _faults(folder, 0, 1)
    own = on_each_rank(lambda: _faults(folder, rank(process_group), world_size(process_group)), process_group)
    found = all_gather_object(own, process_group)
    return sorted({fault for faults in found for fault in faults})


def _faults(folder: Path, number: int, count: int) -> list[str]:
    try:
        manifest = read_manifest(folder)
    except Damaged as error:
        return [f"{MANIFEST}: {error}"]
    by_size = sorted(manifest.files, key=lambda name: (-manifest.files[name].bytes, name))
    with ThreadPoolExecutor(THREADS) as pool:
        checks = pool.map(
            lambda name: file_fault(folder / name, manifest.files[name]), by_size[number::count]
        )
        faults = [fault for fault in checks if fault]
    return faults + _content_faults(folder, manifest) if number == 0 else faults


def _content_faults(folder: Path, manifest: Manifest) -> list[str]:
    extra = {path.name for path in folder.iterdir()} - {MANIFEST, *manifest.files}
    faults = [f"{name}: extra, not in {MANIFEST}" for name in sorted(extra)]
    contents = {
        TENSORS: lambda: read_tensors(folder, manifest),
        STATE: lambda: read_state(folder),
        CONFIG: lambda: read_config(folder),
    }
    for name, read in contents.items():
        try:
            read()
        except Damaged as error:
            if (folder / name).exists():  # else named already, by the rank that checks this file
                faults.append(f"{name}: {error}")
    return faults
