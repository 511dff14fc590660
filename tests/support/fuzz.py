"""A fuzz of files from outside: made, changed by seed, sealed again as a forger would, and read."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from neuropbr_dist.data.packed.index import METADATA, metadata_checksum
from neuropbr_dist.errors import UserError
from tests.support.mutations import answering, mutated_bytes, mutated_json

FEW, MANY = 40, 500
"""Changes of each kind of file: in `make test`, and as a drill."""
SECONDS = 10.0
Case = tuple[Callable[[], object], dict[Path, str]]
"""What reads the files, and the files to change, each as `bytes`, `json`, `lines` of it, or `values`: JSON that stays JSON."""


def seal(path: Path, rng: random.Random) -> None:
    """Recompute the sums of a save or a packed set around a changed file, mostly, so that the change is read."""
    manifest, metadata = path.with_name("manifest.json"), path.with_name(METADATA)
    try:
        if manifest.exists():
            content = json.loads(manifest.read_text())
            if path != manifest:
                record = {
                    "bytes": path.stat().st_size,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
                content["files"][path.name] = record
            content.pop("sha256", None)
            own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            manifest.write_text(json.dumps({**content, "sha256": own}))
        elif metadata.exists():
            content = json.loads(metadata.read_text())
            if path != metadata:
                content["index"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            content.pop("checksum", None)
            metadata.write_text(json.dumps({**content, "checksum": metadata_checksum(content)}))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        pass  # the change left nothing to seal


def refused(call: Callable[[], object]) -> None:
    try:
        call()
    except UserError as error:
        assert str(error) and len(str(error)) < 4000


def change(path: Path, kind: str, rng: random.Random) -> None:
    content = path.read_bytes()
    if kind == "bytes" or (kind != "values" and rng.random() < 0.2):
        path.write_bytes(mutated_bytes(content, rng))
    elif kind in ("json", "values"):
        path.write_text(mutated_json(json.loads(content), rng, deep=kind == "json"))
    else:
        lines = content.decode().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = mutated_json(json.loads(lines[at]), rng)
        path.write_text("\n".join(lines) + "\n")


def fuzz(tmp_path: Path, make: Callable[[Path], Case], times: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    read, files = make(home)
    read()  # as it is, it is good
    sound = tmp_path / "sound"
    shutil.copytree(home, sound, symlinks=True)
    for seed in range(times):
        rng = random.Random(f"{make.__name__} {seed}")
        path = rng.choice(list(files))
        change(path, files[path], rng)
        if rng.random() < 0.8:
            seal(path, rng)
        try:
            with answering(SECONDS):
                refused(read)
        except BaseException as error:
            error.add_note(f"{make.__name__} {seed}: {path.name}") if hasattr(error, "add_note") else None
            raise
        shutil.rmtree(home)
        shutil.copytree(sound, home, symlinks=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "sound"]
