"""Upstream's `.pth` files: pickles, read without running what is in them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from neuropbr_dist.errors import UserError
from neuropbr_dist.files import require_file

PARTS = ("Data", "Model", "Loss", "Optimizer", "Training", "Transform", "Train")
OUR_CONFIG = "neuropbr_dist_config"
"""Key of our configuration's YAML in files that we wrote."""


class Settings:
    """Stands in for upstream's configuration classes: takes their fields, runs none of their code."""

    def tree(self) -> dict[str, Any]:
        """Return fields, with nested configurations as dictionaries."""
        return {k: v.tree() if isinstance(v, Settings) else v for k, v in vars(self).items()}


NOT_A_CHECKPOINT = (
    pickle.UnpicklingError, EOFError, RuntimeError, OSError, ImportError, AttributeError, ValueError, TypeError,
    LookupError, AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""Errors that torch and pickle raise on a file that is cut, altered or something else."""
STAND_INS = {
    f"{module}.{part}Config": Settings
    for module in ("train_config", "training.train_config")
    for part in PARTS
}


@dataclass(frozen=True)
class UpstreamFile:
    """Parts of a file that are used."""

    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor] | None
    settings: dict[str, dict[str, Any]]
    """Upstream's configuration by part and field; {} if the file has none."""
    config_yaml: str | None
    """Our own configuration, if we wrote the file."""
    epoch: int | None


def read_pth(path: Path, *, trust_pickle: bool = False) -> UpstreamFile:
    """Read a checkpoint of upstream's trainer.

    Tensors and plain values only are read; upstream's configuration classes are replaced by a stand-in.

    Args:
        trust_pickle: unpickle whatever is in it. That runs code of the file's author.

    Raises:
        UserError: missing, not a file of `torch.save`, no generator in it, or it holds anything else than
            tensors and plain values and isn't trusted; what it holds is named.
    """
    require_file(path)
    with reading(path):
        whole = zipfile.is_zipfile(path)
    if not whole:
        raise UserError(f"{path}: damaged, or not a file of torch.save")
    if not trust_pickle:
        check_no_code(path)
    content = load(path, trust_pickle)
    found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    if not isinstance(content, Mapping) or "generator_state_dict" not in content:
        raise UserError(f"{path}: no generator_state_dict in it; found: {found}")
    settings, config_yaml = content.get("config"), content.get(OUR_CONFIG)
    if not isinstance(config_yaml, str | None):
        raise UserError(f"{path}: {OUR_CONFIG} is {type(config_yaml).__name__}; expected YAML text")
    discriminator = content.get("discriminator_state_dict")
    return UpstreamFile(
        generator=tensors_of(content["generator_state_dict"], f"{path}: generator_state_dict"),
        discriminator=None
        if discriminator is None
        else tensors_of(discriminator, f"{path}: discriminator_state_dict"),
        settings=settings.tree() if isinstance(settings, Settings) else {},
        config_yaml=config_yaml,
        epoch=content["epoch"] if type(content.get("epoch")) is int else None,
    )


def check_no_code(path: Path) -> None:
    """Name what the pickle would call beyond tensors, plain values and upstream's configuration."""
    with reading(path):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    foreign = sorted(name for name in names if name not in STAND_INS)
    if foreign:
        raise UserError(
            f"{path}: holds pickled objects whose loading runs code: {', '.join(foreign)}. Nothing was loaded; "
            "if you trust whoever wrote the file: --trust-pickle"
        )


def load(path: Path, trust_pickle: bool) -> Any:
    """Return the file's content; upstream's configuration classes become `Settings`."""
    with reading(path):
        if trust_pickle:
            return torch.load(
                path, map_location="cpu", mmap=True, weights_only=False, pickle_module=TrustingPickle
            )
        names: list[Any] = [(stand_in, name) for name, stand_in in STAND_INS.items()]
        with torch.serialization.safe_globals(names):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return STAND_INS.get(f"{module}.{name}") or super().find_class(module, name)


# What torch.load takes as `pickle_module`.
TrustingPickle = SimpleNamespace(**vars(pickle) | {"Unpickler": _Unpickler})


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise a UserError that names `path` for whatever shows inside that the file can't be read."""
    try:
        yield
    except NOT_A_CHECKPOINT as error:
        raise UserError(f"{path}: can't be read: {' '.join(str(error).split())[:300]}") from error


def tensors_of(state: Any, where: str) -> dict[str, Tensor]:
    """Return a `state_dict()`, without the prefixes that torch.compile and DataParallel leave.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(state, Mapping):
        raise UserError(f"{where} is {type(state).__name__}; expected tensors by name")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{where}: {name!r} is {type(value).__name__}; expected tensors by name")
    return {
        name.replace("_orig_mod.", "").removeprefix("module."): value.detach()
        for name, value in state.items()
    }
