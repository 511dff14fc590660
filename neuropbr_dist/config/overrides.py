"""Fields of a run that a command line sets: the same words mean the same at a fresh start and at a resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from neuropbr_dist.config.check import fold_legacy, resolve
from neuropbr_dist.config.load import load
from neuropbr_dist.config.schema import TrainConfig
from neuropbr_dist.config.stages import ONE_STAGE, beside, forget_one_stage, scaled
from neuropbr_dist.config.values import set_field, set_text
from neuropbr_dist.errors import UserError

FIELD_FLAGS = {
    "--input-dir": "data.input_dir",
    "--output-dir": "data.output_dir",
    "--data": "data.packed_dir",
    "--materials": "data.materials_dir",
    "--environments": "data.environments_dir",
    "--device": "training.device",
    "--checkpoint-dir": "training.checkpoint_dir",
    "--engine": "training.engine",
    "--engine-discriminator": "training.engine_discriminator",
    "--ds": "training.ds_config",
    "--ds-discriminator": "training.ds_config_discriminator",
    "--shard": "training.shard",
    "--compile": "training.compile",
}
"""Flag to field; the value's type is the field's."""
INTEGER_FLAGS = {
    "--render-curriculum": "data.render_curriculum",
    "--batch-size": "training.batch_size",
    "--epochs": "training.epochs",
}


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Fields named on a command line.

    Args:
        config: a preset's name, a `.yaml` file or a `.py` file with `get_config()`; None: the preset `default`.
        flags: the flags of `FIELD_FLAGS` and `INTEGER_FLAGS` that were given, with their values.
        use_dirty: the guide's legacy flag for `--render-curriculum 2`.
        assignments: `PART.FIELD=VALUE` of each `--set`, in order; they win over the flags.
    """

    config: str | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    use_dirty: bool = False
    assignments: tuple[str, ...] = ()

    def with_flag(self, flag: str, value: Any) -> Overrides:
        """Return these with one flag more, or with another value of it."""
        return replace(self, flags={**self.flags, flag: value})

    def with_field(self, name: str, value: Any) -> Overrides:
        """Return these with one `--set` more, which wins over those before."""
        return replace(self, assignments=(*self.assignments, f"{name}={json.dumps(value)}"))

    def with_size(self, size: int | None) -> Overrides:
        """Return these with the value of `--size`, which is short for `--set data.image_size`.

        Raises:
            UserError: another side is named already.
        """
        given = TrainConfig()
        for assignment in self.assignments:
            set_text(given, assignment)
        if "data.image_size" in self.named() and given.data.image_size != size:
            raise UserError(
                f"--size {size or 'native'} means data.image_size, but that is {given.data.image_size}; leave one out"
            )
        return self.with_field("data.image_size", size)

    def argv(self) -> list[str]:
        """Return a command line that says the same."""
        config = [] if self.config is None else ["--config", self.config]
        flags = [word for flag, value in self.flags.items() for word in (flag, str(value))]
        sets = [word for assignment in self.assignments for word in ("--set", assignment)]
        return [*config, *flags, *(["--use-dirty"] if self.use_dirty else []), *sets]

    def named(self) -> dict[str, str]:
        """Return the fields that are named, each with the word that does."""
        flags = {(FIELD_FLAGS | INTEGER_FLAGS)[flag]: flag for flag in self.flags}
        dirty = {"data.render_curriculum": "--use-dirty"} if self.use_dirty else {}
        fields = (assignment.partition("=")[0].strip() for assignment in self.assignments)
        return flags | dirty | {field: f"--set {field}" for field in fields}

    def configuration(self) -> TrainConfig:
        """Return the preset or file, then flags, resolved and checked.

        Raises:
            UserError: a value or a combination that can't be.
        """
        cfg = load(self.config or "default")
        fold_legacy(cfg)  # before the flags, which win
        self.apply(cfg)
        return resolve(cfg)

    def apply(self, cfg: TrainConfig) -> None:
        """Put the values into `cfg`: flags first, then assignments in order."""
        self._forget_other_data(cfg)
        named = self.named()
        if "training.stages" in named:  # they take the place of what a file, or a saved run, has for one
            forget_one_stage(cfg)
        for flag, value in self.flags.items():
            set_field(cfg, (FIELD_FLAGS | INTEGER_FLAGS)[flag], value, flag)
        if self.use_dirty:
            curriculum = self.flags.get("--render-curriculum", 2)
            if curriculum != 2:
                raise UserError(
                    f"--use-dirty means --render-curriculum 2, but --render-curriculum {curriculum} "
                    "is given too; leave one out"
                )
            cfg.data.render_curriculum = 2
        for assignment in self.assignments:
            set_text(cfg, assignment)
        if not cfg.training.stages:
            return
        for name in ONE_STAGE:
            if name in named:
                raise beside(name, f"{name} ({named[name]})")
        if "training.epochs" in named:
            cfg.training.stages = scaled(cfg.training.stages, cfg.training.epochs)

    def _forget_other_data(self, cfg: TrainConfig) -> None:
        """Let data named here take the place of what a file, or a saved run, names in the other way."""
        data = cfg.data
        named = self.flags.keys() & {"--data", "--input-dir", "--materials"}
        if named and "--input-dir" not in named:
            data.input_dir = data.output_dir = data.metadata_path = None
        if named and "--data" not in named:
            data.packed_dir = None
        if named and "--materials" not in named and data.materials_dir is not None:
            data.materials_dir, data.render = None, "auto"  # what the other set brought with it
        if "--materials" in named and data.render == "stored":
            data.render = "auto"
