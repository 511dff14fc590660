"""Run configuration: dataclasses, presets, files, command line, validation."""

from neuropbr_dist.config.architecture import as_saved, settled, settled_stats
from neuropbr_dist.config.check import check_rendering, check_size, refuse_other_networks, resolve
from neuropbr_dist.config.frozen import frozen, with_fields, writable
from neuropbr_dist.config.load import from_yaml, load, to_yaml
from neuropbr_dist.config.presets import PRESETS
from neuropbr_dist.config.schema import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    TrainingConfig,
    TransformConfig,
)
from neuropbr_dist.config.values import differences, set_field, set_text, to_dict

__all__ = [
    "PRESETS",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainConfig",
    "TrainingConfig",
    "TransformConfig",
    "as_saved",
    "check_rendering",
    "check_size",
    "differences",
    "from_yaml",
    "frozen",
    "load",
    "refuse_other_networks",
    "resolve",
    "set_field",
    "set_text",
    "settled",
    "settled_stats",
    "to_dict",
    "to_yaml",
    "with_fields",
    "writable",
]
