"""Small file systems, so that a disk that is full can be had in a test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of `size` (`16k`, `4m`) in `folder`; a skip where none can be mounted."""
    with mounted(folder, ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]):
        yield folder


@contextmanager
def real_disk(folder: Path, mib: int = 32) -> Iterator[Path]:
    """A file system of ext4 in a file beside `folder`, mounted there; a skip where none can be."""
    image = folder.with_suffix(".img")
    image.parent.mkdir(parents=True, exist_ok=True)
    with open(image, "wb") as file:
        file.truncate(mib << 20)
    make = ["mkfs.ext4", "-q", "-F", str(image)]
    with mounted(folder, make, ["mount", "-o", "loop", str(image), str(folder)]):
        yield folder


@contextmanager
def mounted(folder: Path, *commands: list[str]) -> Iterator[None]:
    """What `commands` mount in `folder`, made if missing; a skip where one of them isn't there or is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    for words in commands:
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"no {words[0]} here")
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def repair(folder: Path) -> None:
    """Check a `real_disk` as a person does after an accident, and mount it again."""
    image = folder.with_suffix(".img")
    subprocess.run(["umount", folder], check=True)
    subprocess.run(["fsck.ext4", "-fy", image], capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Change a `small_disk`: `size=8m`, `ro`."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
