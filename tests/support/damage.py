"""What a bad disk and an attacker do to saved files."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuropbr_dist.checkpoint.manifest import FileRecord, read_manifest, write_manifest


class Payload:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def flip_a_byte(path: Path, at: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    """Give a checkpoint sizes and checksums that fit whatever lies in its folder."""
    records = {
        path.name: FileRecord(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    write_manifest(folder, replace(read_manifest(folder), files=records, **changes))
