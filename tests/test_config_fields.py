"""What a field allows stands in its type, and holds by whatever way a value comes."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any

import pytest
import yaml
from annotated_types import Interval, Len

from neuropbr_dist.config import PRESETS, TrainConfig, from_yaml, load, resolve, set_field, set_text
from neuropbr_dist.config.fields import describe, field_types, fit, unwrap
from neuropbr_dist.config.overrides import FIELD_FLAGS, INTEGER_FLAGS, Overrides
from neuropbr_dist.errors import UserError

POSITIVE_COUNTS = (
    "data.prefetch_factor", "model.transformer_dim", "model.transformer_num_heads", "model.transformer_depth",
    "model.discriminator_ndf", "training.epochs", "training.batch_size", "training.d_steps_per_g_step",
    "training.max_skipped_steps", "training.val_every_n_epochs", "training.save_every_n_epochs",
    "training.save_latest_every_n_epochs", "training.keep_latest", "training.log_every_n_steps",
    "training.log_images_every_n_epochs", "training.sample_ranks",
)  # fmt: skip
COUNTS = ("data.cache_mib", "optimizer.patience", "training.gan_start_epoch")
POSITIVES = (
    "model.transformer_mlp_ratio", "optimizer.g_lr", "optimizer.d_lr", "optimizer.eps", "optimizer.step_size",
    "optimizer.gamma", "optimizer.factor",
)  # fmt: skip
WEIGHTS = (
    *(f"loss.w_{name}" for name in ("l1", "ssim", "normal", "render", "gan", "feature_matching", "discriminator")),
    *(f"loss.w_{name}" for name in ("albedo", "roughness", "metallic", "normal_map")),
    "optimizer.g_weight_decay", "optimizer.d_weight_decay", "optimizer.scheduler_warmup_epochs",
    "optimizer.scheduler_min_lr",
)  # fmt: skip
RATES = (
    "model.transformer_attn_drop", "model.transformer_proj_drop", "model.transformer_drop_path_rate",
    "loss.gan_label_smoothing",
)  # fmt: skip
SHARES = (
    "data.min_confidence", "data.drop_views", "data.crop", "data.tint", "data.mixtures", "data.other_relief",
)  # fmt: skip
TEXTS = ("training.device", "training.checkpoint_dir", "training.wandb_project")
TEXTS_OR_NONE = (
    "data.input_dir", "data.output_dir", "data.metadata_path", "data.packed_dir", "data.builtin_cache",
    "data.materials_dir", "data.environments_dir",
    "loss.custom_module", "training.ds_config", "training.ds_config_discriminator", "training.wandb_run_name",
)  # fmt: skip
BETAS = "list of float, 2 of them, each from 0 to below 1"
RANGES: dict[str, tuple[str, list[Any], list[Any]]] = {
    **{name: ("int, 1 or more", [0, -1], [1]) for name in POSITIVE_COUNTS},
    **{name: ("int, 0 or more", [-1], [0]) for name in COUNTS},
    **{name: ("float, above 0", [0.0, -1.0], [1e-9]) for name in POSITIVES},
    **{name: ("float, 0 or more", [-1e-9], [0.0]) for name in WEIGHTS},
    **{name: ("float, from 0 to below 1", [-0.1, 1.0], [0.0, 0.999]) for name in RATES},
    **{name: ("non-empty text", [""], ["x"]) for name in TEXTS},
    **{name: ("non-empty text or none", [""], ["x", None]) for name in TEXTS_OR_NONE},
    "data.image_size": ("int, 16 or more, or none", [15], [16, None]),
    "data.num_workers": ("int, from 0 to 1024", [-1, 1025], [0, 1024]),
    "data.val_ratio": ("float, above 0, below 1", [0.0, 1.0], [0.001, 0.999]),
    **{name: ("float, from 0 to 1", [-0.1, 1.1], [0.0, 1.0]) for name in SHARES},
    "data.renders_per_epoch": ("int, 1 or more, or none", [0], [1, None]),
    "data.roughness_shift": ("float, from 0 to 0.5", [-0.1, 0.6], [0.0, 0.5]),
    "data.any_roughness": ("float, from 0 to 1", [-0.1, 1.1], [0.0, 1.0]),
    "data.bench_scenes": ("float, from 0 to 1", [-0.1, 1.1], [0.0, 1.0]),
    "data.relief": ("float, from 0 to 2", [-0.1, 2.1], [0.0, 2.0]),
    "data.camera_jitter": ("float, from 0 to 0.008", [-0.001, 0.009], [0.0, 0.008]),
    "data.builtin_count": ("int, 2 or more", [1], [2]),
    "transform.mean": (
        "list of float, 3 of them, each from 0 to 1",
        [[0.5, 0.5], [0.5] * 4, [0.5, 0.5, 1.1], [-0.1, 0.5, 0.5]],
        [[0.0, 0.5, 1.0]],
    ),
    "transform.std": (
        "list of float, 3 of them, each above 0",
        [[0.5, 0.5], [0.5] * 4, [0.5, 0.0, 0.5]],
        [[0.1, 0.5, 2.0]],
    ),
    "model.encoder_channels": ("list of int, 2 or more of them, each 1 or more", [[64], [64, 0]], [[1, 1]]),
    "model.discriminator_n_layers": ("int, from 1 to 8", [0, 9], [1, 8]),
    "data.views": ("int, from 1 to 3", [0, 4], [1, 3]),
    "loss.custom": ("map of text to float, each 0 or more", [{"mse": -1.0}], [{}, {"mse": 0.0}]),
    "optimizer.g_betas": (BETAS, [[0.5], [0.5] * 3, [0.5, 1.0], [-0.1, 0.5]], [[0.0, 0.999]]),
    "optimizer.d_betas": (BETAS, [[0.5], [0.5, 1.0]], [[0.0, 0.999]]),
    "optimizer.scheduler_epochs": ("float, above 0, or none", [0.0], [0.5, None]),
    "training.global_batch_size": ("int, 1 or more, or none", [0], [1, None]),
    "training.seed": (f"int, from 0 to below {2**63}", [-1, 2**63], [0, 2**63 - 1]),
    "training.grad_clip_norm": ("float, above 0, or none", [0.0], [1e-9, None]),
    "training.ema_decay": ("float, above 0, below 1, or none", [0.0, 1.0], [0.5, None]),
    "training.timeout_minutes": ("float, above 0, at most 525600", [0.0, 1e9], [0.1, 525600.0]),
    "training.save_every_n_steps": ("int, 1 or more, or none", [0], [1, None]),
    "training.save_every_n_minutes": ("float, above 0, or none", [0.0], [0.1, None]),
}
"""Field -> what its error and the documentation say, values just outside of it, values at its ends."""
OUTSIDE = [(name, value) for name, (_, outside, _) in RANGES.items() for value in outside]
INSIDE = [(name, value) for name, (_, _, inside) in RANGES.items() for value in inside]
KINDS = {
    f"{part.name}.{name}": kind
    for part in dataclasses.fields(TrainConfig)
    for name, kind in field_types(getattr(TrainConfig(), part.name)).items()
}


def leaves(kind: Any, limited: bool = False) -> typing.Iterator[tuple[Any, bool]]:
    """Every plain type in a field's type, and whether a limit stands at it."""
    base, limits = unwrap(kind)
    inner = [arm for arm in typing.get_args(base) if typing.get_origin(base) is not typing.Literal]
    for arm in inner:
        yield from leaves(arm)
    if not inner:
        yield base, bool(limits)


def test_every_number_and_text_has_a_range():
    unlimited = [
        name for name, kind in KINDS.items()
        if name != "loss.custom" and any(base in (int, float, str) and not limited for base, limited in leaves(kind))
    ]  # fmt: skip
    assert not unlimited


def test_every_field_with_a_range_is_in_the_table():
    assert {
        name for name, kind in KINDS.items() if any(limited for _, limited in leaves(kind))
    } == RANGES.keys()
    assert {name: describe(KINDS[name]) for name in RANGES} == {
        name: said for name, (said, *_) in RANGES.items()
    }


@pytest.mark.parametrize("name, value", INSIDE, ids=str)
def test_the_ends_of_a_range_are_taken(name, value):
    cfg = TrainConfig()
    set_field(cfg, name, value, "here")
    part, _, field = name.partition(".")
    assert getattr(getattr(cfg, part), field) == value


@pytest.mark.parametrize("name, value", OUTSIDE, ids=str)
def test_the_error_is_the_same_whatever_way_a_value_comes(name, value, tmp_path, monkeypatch):
    part, _, field = name.partition(".")

    def changed():
        cfg = TrainConfig()
        setattr(getattr(cfg, part), field, value)
        return cfg

    python = tmp_path / "c.py"
    python.write_text(
        "from neuropbr_dist.config import TrainConfig\n\n\ndef get_config():\n"
        f"    cfg = TrainConfig()\n    cfg.{name} = {value!r}\n    return cfg\n"
    )
    monkeypatch.setitem(PRESETS, "mine", changed)
    ways = {
        "--set": lambda: set_text(TrainConfig(), f"{name}={yaml.safe_dump(value, default_flow_style=True)}"),
        "c.yaml": lambda: from_yaml(yaml.safe_dump({part: {field: value}}), "c.yaml"),
        str(python): lambda: load(str(python)),
        "preset mine": lambda: load("mine"),
        "configuration": lambda: resolve(changed()),
    }
    for flag, target in (FIELD_FLAGS | INTEGER_FLAGS).items():
        if target == name:
            ways[flag] = Overrides(flags={flag: value}).configuration
    for where, way in ways.items():
        with pytest.raises(UserError) as found:
            way()
        assert str(found.value) == f"{where}: {name} = {value!r}; allowed: {RANGES[name][0]}"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_keep_to_the_types(preset, monkeypatch):
    cfg = PRESETS[preset]()
    for name, kind in KINDS.items():
        part, _, field = name.partition(".")
        value = getattr(getattr(cfg, part), field)
        assert fit(value, kind) == value, name


@pytest.mark.parametrize(
    "value, kind",
    [
        (1.5, int), (True, int), (True, float), ("x", float), (1, bool), (1, str), (10**400, float),
        (0, Annotated[int, Interval(ge=1)]), (0.0, Annotated[float, Interval(gt=0)] | None),
        ([1], Annotated[list[int], Len(2)]), ([1, 1, 1], Annotated[list[int], Len(2, 2)]),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_refused(value, kind):
    with pytest.raises(TypeError):
        fit(value, kind)
