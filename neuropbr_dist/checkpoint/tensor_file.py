"""One safetensors file that carries its configuration, state and checksum in its metadata.

Two kinds:

    inference       the generator, names as in its `state_dict()`
    consolidated    everything of a checkpoint, optimizer moments too, under its canonical names

Any safetensors reader opens them. The format has no checksum of its own, so a flipped bit of a
weight would go unseen: ours is the SHA-256 of names, types, shapes, bytes, configuration and state.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neuropbr_dist.checkpoint.folders import check_outside
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import replacing, require_file
from neuropbr_dist.kinds import fits

FORMAT = "neuropbr_dist 1"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class TensorFile:
    """Content of a file."""

    kind: Literal["inference", "consolidated"]
    tensors: dict[str, Tensor]
    """Whole, on the CPU, by name."""
    config_yaml: str
    """The run's configuration."""
    state: dict[str, Any]
    """`consolidated`: the run's state; `inference`: its `step`, and `ema`: the weights are an average."""


def write_tensor_file(path: Path, content: TensorFile) -> None:
    """Write a file; it appears whole, by one rename, and replaces one of that name.

    Raises:
        UserError: it can't be written there, or that is in a checkpoint.
    """
    metadata = {
        "format": FORMAT,
        "kind": content.kind,
        "config": content.config_yaml,
        "state": json.dumps(content.state),
    }
    metadata["sha256"] = _checksum(content.tensors, metadata)
    check_outside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file(content.tensors, part, metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} was not written: {error}") from error


def read_tensor_file(path: Path | str) -> TensorFile:
    """Read a file and compare its checksum.

    Raises:
        UserError: it is missing, damaged, no safetensors file, or not one of ours.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise UserError(
            f"{path}: not a {SUFFIX} file; allowed: a run's folder, a checkpoint in it, or a file that "
            "launch/export.py wrote (pickled files such as .pth are not read; upstream's: launch/export.py from-upstream)"
        )
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'not readable'}") from error
    except SafetensorError as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "none")
        raise UserError(
            f"{path}: its metadata names format {found!r}; {FORMAT!r} of launch/export.py is read"
        )
    if metadata.pop("sha256", None) != _checksum(tensors, metadata):
        raise UserError(f"{path}: damaged (its checksum differs); export it again")
    kind: Any = metadata.get("kind")
    try:
        state = json.loads(metadata.get("state", ""))
    except (ValueError, RecursionError):
        state = None
    known = kind in ("inference", "consolidated") and "config" in metadata
    if not known or not isinstance(state, dict) or not fits(state.get("step"), int):
        raise UserError(f"{path}: its metadata aren't those of an export")
    return TensorFile(kind, tensors, metadata["config"], state)


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
