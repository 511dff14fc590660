"""Meaning of `auto` where a run's network, and what it is fed, is settled at its first start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from neuropbr_dist.config.schema import ModelConfig, TrainConfig, TransformConfig

IMAGENET_STATS = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
UNSET_STATS = TransformConfig().mean, TransformConfig().std

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


def as_saved(cfg: TrainConfig) -> TrainConfig:
    """Return a saved configuration with nothing left open that its run had settled, or that its release didn't know."""
    transform = cfg.transform
    if transform.use_imagenet_stats == "auto":
        transform = replace(transform, use_imagenet_stats=False)
    return replace(cfg, model=settled(cfg.model), transform=transform)


def settled_stats(cfg: TrainConfig) -> dict[str, Any]:
    """Return the fields of `transform` with `use_imagenet_stats = auto` settled: true with a pretrained encoder.

    Stored batch statistics and filters expect it; at 0.5 and 0.5 they get 0.45 of the contrast. Once true or false is
    saved, it stays.
    """
    t = cfg.transform
    if t.use_imagenet_stats != "auto":
        return {}
    if not cfg.model.encoder_pretrained or (t.mean, t.std) != UNSET_STATS:
        return {"use_imagenet_stats": False}
    return {"use_imagenet_stats": True, "mean": list(IMAGENET_STATS[0]), "std": list(IMAGENET_STATS[1])}
