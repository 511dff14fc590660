"""A configuration from a preset, a YAML file or a Python file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

from neuropbr_dist.config.presets import PRESETS
from neuropbr_dist.config.schema import TrainConfig
from neuropbr_dist.config.text import parse_yaml, read_text
from neuropbr_dist.config.values import fit_fields, to_dict, update
from neuropbr_dist.errors import UserError, running


def load(source: str) -> TrainConfig:
    """Return the configuration of a preset, a `.yaml` file or a `.py` file with `get_config()`.

    Raises:
        UserError: none of these, or the file holds what a configuration may not.
    """
    if source in PRESETS:
        return fit_fields(PRESETS[source](), f"preset {source}")
    path = Path(source)
    if path.suffix not in (".py", ".yaml", ".yml"):
        raise UserError(
            f"--config {source!r}: not a preset ({', '.join(PRESETS)}) and not a .yaml or .py file"
        )
    if path.stem in PRESETS and not path.exists():  # the guide's configs/high_quality.py
        raise UserError(f"--config {source}: no such file; the preset of that name is --config {path.stem}")
    text = read_text(path, "--config")
    return from_python(path) if path.suffix == ".py" else from_yaml(text, str(path))


def from_yaml(text: str, where: str) -> TrainConfig:
    """Return the configuration of a YAML text; fields that it doesn't name keep their defaults."""
    tree = parse_yaml(text, where)
    cfg = TrainConfig()
    update(cfg, {} if tree is None else tree, where)
    return cfg


def from_python(path: Path) -> TrainConfig:
    """Run the user's file and take what its `get_config()` returns."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with running(path):
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        cfg = get_config() if callable(get_config) else None
    if cfg is None:
        raise UserError(
            f"{path}: has no function get_config(), or it returns nothing; it must return a TrainConfig"
        )
    if not isinstance(cfg, TrainConfig):
        raise UserError(f"{path}: get_config() returned {type(cfg).__name__}; expected TrainConfig")
    return fit_fields(cfg, str(path))


def to_yaml(cfg: TrainConfig) -> str:
    """Return every field as YAML, in the order of the dataclasses."""
    tree: dict[str, Any] = to_dict(cfg)
    return yaml.safe_dump(tree, sort_keys=False)
