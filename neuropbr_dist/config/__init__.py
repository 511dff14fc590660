"""Run configuration: dataclasses, presets, files, command line, validation."""

from neuropbr_dist.config.architecture import as_saved, settled, settled_stats
from neuropbr_dist.config.check import (
    MATERIAL_CHANGES,
    check_judged,
    check_mixtures,
    check_rendering,
    check_same_networks,
    check_size,
    resolve,
)
from neuropbr_dist.config.frozen import frozen, with_fields, writable
from neuropbr_dist.config.load import from_yaml, load, to_yaml
from neuropbr_dist.config.presets import PRESETS
from neuropbr_dist.config.schema import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    Stage,
    TrainConfig,
    TrainingConfig,
    TransformConfig,
)
from neuropbr_dist.config.stages import as_one_stage, stages_of
from neuropbr_dist.config.values import differences, set_field, set_text, to_dict

__all__ = [
    "MATERIAL_CHANGES",
    "PRESETS",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Stage",
    "TrainConfig",
    "TrainingConfig",
    "TransformConfig",
    "as_one_stage",
    "as_saved",
    "check_judged",
    "check_mixtures",
    "check_rendering",
    "check_same_networks",
    "check_size",
    "differences",
    "from_yaml",
    "frozen",
    "load",
    "resolve",
    "set_field",
    "set_text",
    "settled",
    "settled_stats",
    "stages_of",
    "to_dict",
    "to_yaml",
    "with_fields",
    "writable",
]
