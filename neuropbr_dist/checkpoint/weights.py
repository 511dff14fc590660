"""A network's weights from any checkpoint or exported file, whole and on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from neuropbr_dist.checkpoint.folders import find
from neuropbr_dist.checkpoint.store import Checkpoint, open_newest
from neuropbr_dist.checkpoint.tensor_file import SUFFIX, TensorFile, read_tensor_file
from neuropbr_dist.errors import UserError

WEIGHTS_FILE = f"model{SUFFIX}"
"""Name of the weights in an exported folder."""
_KINDS = ("param/", "buffer/", "ema/")
"""Canonical names that make a `state_dict()`; a later one wins: averaged weights are used where there are any."""


def read_weights(path: Path) -> tuple[TensorFile, Path]:
    """Return the generator's weights as an `inference` file holds them, and where they are from; see `read_networks`."""
    found, origin = read_networks(path, "generator")
    return found["generator"], origin


def read_networks(path: Path, *parts: str) -> tuple[dict[str, TensorFile], Path]:
    """Return networks' weights, each as an `inference` file holds a generator's, and where they are from. Collective.

    Args:
        path: a run's folder (its newest good checkpoint), a checkpoint or a name in that folder; or an exported file
            or folder.
        parts: `generator`, `discriminator`. One that isn't there has no tensors.

    Raises:
        UserError: nothing there, or all of it damaged.
    """
    if (path / WEIGHTS_FILE).is_file() and not find(path):  # beside checkpoints it is an old copy of one
        path = path / WEIGHTS_FILE
    if path.is_file():
        stored = read_tensor_file(path)
        if stored.kind == "inference":
            nothing = TensorFile("inference", {}, stored.config_yaml, stored.state)
            return {part: stored if part == "generator" else nothing for part in parts}, path
        origin, tensors, config, step = path, stored.tensors, stored.config_yaml, stored.state.get("step")
    else:
        with open_checkpoint(path) as opened:
            prefixes = [f"{part}/{kind}" for part in parts for kind in _KINDS]
            tensors = {name: value for prefix in prefixes for name, value in opened.read(prefix).items()}
            origin, config, step = opened.path, opened.config_yaml, opened.state["step"]
    found = {}
    for part in parts:
        averaged = any(name.startswith(f"{part}/{_KINDS[-1]}") for name in tensors)
        found[part] = TensorFile("inference", _named(tensors, part), config, {"step": step, "ema": averaged})
    return found, origin


def _named(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Rename canonical names to those of the network's `state_dict()`; all else is left out."""
    return {
        name.removeprefix(f"{part}/{kind}"): value
        for kind in _KINDS
        for name, value in tensors.items()
        if name.startswith(f"{part}/{kind}")
    }


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the newest good checkpoint that `path` may mean. Collective.

    Raises:
        UserError: there is none, or none is good.
    """
    checkpoint = open_newest(path, usable=lambda found: step_of(found.state))
    if checkpoint is None:
        found = "no checkpoint in this folder" if path.is_dir() else "no such checkpoint or folder"
        raise UserError(f"{path}: {found}; allowed: a run's folder, or a checkpoint in it")
    return checkpoint


def step_of(state: Mapping[str, Any]) -> int:
    """Return the step of saved weights. Raises a UserError where there is none."""
    step = state.get("step")
    if type(step) is not int or step < 0:
        raise UserError("its state names no step")
    return step


def mismatches(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return the tensors of `wanted` that aren't found in their shape and kind, each with what is wrong."""
    both = [(name, tensor, found[name]) for name, tensor in wanted.items() if name in found]
    return [
        *(f"{name} (missing)" for name in wanted if name not in found),
        *(
            f"{name} ({tuple(there.shape)}; its configuration means {tuple(tensor.shape)})"
            for name, tensor, there in both
            if there.shape != tensor.shape
        ),
        *(
            f"{name} ({there.dtype})"
            for name, tensor, there in both
            if there.is_floating_point() != tensor.is_floating_point()
        ),
    ]


def check_finite(weights: Mapping[str, Tensor], where: str, harm: str) -> None:
    """Raise a UserError for weights that hold a NaN or an infinity.

    Args:
        where, harm: whose weights they are, and what would come of them, for the message.
    """
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise UserError(f"{where}: {len(bad)} of its weights are not finite ({bad[0]}); {harm}")
