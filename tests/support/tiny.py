"""The tiny model of all tests, as fields, as a configuration and as words, and what any generator's maps are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neuropbr_dist.config import ModelConfig, TrainConfig

MODEL = {
    "encoder_type": "unet",
    "encoder_channels": [8, 16],
    "transformer_dim": 16,
    "transformer_num_heads": 2,
    "transformer_depth": 1,
    "discriminator_n_layers": 2,
    "discriminator_ndf": 4,
}
"""Pictures of a multiple of 4 px."""
FIELDS = {f"model.{name}": value for name, value in MODEL.items()}


def tiny_model(**changes: Any) -> ModelConfig:
    """The tiny model with other fields, untrained."""
    return ModelConfig(**{**MODEL, "encoder_pretrained": False, **changes})


def set_words(fields: Mapping[str, Any]) -> list[str]:
    """Fields as words of a command line."""
    return [word for name, value in fields.items() for word in ("--set", f"{name}={json.dumps(value)}")]


def assert_maps(maps: Tensor, batch: int, height: int, width: int) -> None:
    """Shape, dtype and ranges of the tensor contract."""
    assert maps.shape == (batch, 8, height, width)
    assert maps.dtype == torch.float32
    assert maps[:, :5].min() >= 0 and maps[:, :5].max() <= 1
    length = maps[:, 5:].norm(dim=1)
    torch.testing.assert_close(length, torch.ones_like(length))


def field(cfg: TrainConfig, name: str) -> Any:
    """The value of `part.name`."""
    part, _, key = name.partition(".")
    return getattr(getattr(cfg, part), key)
