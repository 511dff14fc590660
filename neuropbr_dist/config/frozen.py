"""A configuration is written until a run is set up, and only read from then on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from neuropbr_dist.config.schema import TrainConfig


def frozen(cfg: TrainConfig) -> TrainConfig:
    """Return a copy in which no field can be assigned any more."""
    return _copy(cfg, frozen=True)


def writable(cfg: TrainConfig) -> TrainConfig:
    """Return a copy whose fields can be assigned."""
    return _copy(cfg, frozen=False)


def _copy(cfg: TrainConfig, *, frozen: bool) -> TrainConfig:
    copy = deepcopy(cfg)
    for part in (*(getattr(copy, field.name) for field in dataclasses.fields(copy)), copy):
        object.__setattr__(part, "_frozen", frozen)
    return copy


def with_fields(cfg: TrainConfig, **parts: Mapping[str, Any]) -> TrainConfig:
    """Return a frozen copy with other values in some fields: `with_fields(cfg, training={"epochs": 3})`."""
    changed = {name: dataclasses.replace(getattr(cfg, name), **fields) for name, fields in parts.items()}
    return frozen(dataclasses.replace(cfg, **changed))
