"""Run configuration: dataclasses, presets, files, command line, validation."""

from neuropbr_dist.config.schema import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    TrainingConfig,
    TransformConfig,
)

__all__ = [
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainConfig",
    "TrainingConfig",
    "TransformConfig",
]
