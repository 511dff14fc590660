"""What `auto` means in the fields of `model` that make the network's tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from neuropbr_dist.config.schema import ModelConfig

_AS_EVER: dict[str, Any] = {"skip_merge": "mean", "token_embedding": "none", "normals": "free"}
_ON_THE_PLANE: dict[str, Any] = {"skip_merge": "max_mean", "token_embedding": "none", "normals": "slopes"}


def settled(model: ModelConfig) -> ModelConfig:
    """Return `model` with no `auto` left in the fields that cameras bring in.

    `align = auto` is `none` here: a start that looks at its data settles it before, and saves it; a saved
    configuration in which it still is `auto`, or is missing, is of a release that knew no cameras.
    """
    align: Any = "none" if model.align == "auto" else model.align
    meant = _ON_THE_PLANE if align == "plane" else _AS_EVER
    open_fields = {name: value for name, value in meant.items() if getattr(model, name) == "auto"}
    return replace(model, align=align, **open_fields)
