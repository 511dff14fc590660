"""Presets by the guide's names, and configurations as files."""

import ast
import dataclasses
from pathlib import Path

import pytest
import yaml

from neuropbr_dist.config import PRESETS, TrainConfig, differences, from_yaml, load, resolve, schema, to_yaml
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.data.open import resolve_data
from neuropbr_dist.errors import UserError
from tests.support.said import assert_names
from tests.support.tiny import field

GUIDE = {
    "data.render_curriculum": 0, "data.use_dirty_renders": False, "data.val_ratio": 0.1, "data.image_size": None,
    "model.encoder_type": "resnet", "model.encoder_backbone": "resnet50", "model.encoder_stride": 1,
    "model.encoder_channels": [64, 128, 256, 512, 1024, 2048], "model.freeze_backbone": False, "model.freeze_bn": False,
    "model.transformer_dim": 2048, "model.transformer_num_heads": 32, "model.transformer_depth": 4,
    "model.transformer_mlp_ratio": 4, "model.use_gan": True, "model.discriminator_type": "configurable",
    "model.discriminator_n_layers": 6, "model.discriminator_ndf": 64, "model.discriminator_use_sigmoid": False,
    "loss.w_l1": 1.0, "loss.w_ssim": 0.3, "loss.w_normal": 0.5, "loss.w_gan": 0.05, "loss.gan_loss_type": "hinge",
    "loss.w_albedo": 1.0, "loss.w_roughness": 1.0, "loss.w_metallic": 1.0, "loss.w_normal_map": 1.0,
    "optimizer.scheduler": "cosine", "optimizer.scheduler_min_lr": 1e-6, "optimizer.scheduler_warmup_epochs": 5,
    "training.seed": 42, "training.device": "auto", "training.use_amp": True, "training.grad_clip_norm": 1.0,
    "training.gan_start_epoch": 5, "training.d_steps_per_g_step": 1, "training.checkpoint_dir": "./checkpoints",
    "training.save_every_n_epochs": 5, "training.save_best_only": False, "training.use_tensorboard": True,
    "training.log_every_n_steps": 10, "training.log_images_every_n_epochs": 5, "training.use_wandb": False,
}  # fmt: skip
"""Every value that the training guide documents (`image_size` None: its native 2048)."""
OFF = {
    "loss.w_render": 0.0, "training.ema_decay": None, "data.augment_flips": False, "data.augment_rotations": False,
    "data.drop_views": 0.0, "data.camera_jitter": 0.0, "data.mixtures": 0.0, "data.crop": 0.0, "data.tint": 0.0,
    "data.roughness_shift": 0.0, "data.relief": 0.0, "data.other_relief": 0.0, "data.any_roughness": 0.0, "data.bench_scenes": 0.25,
    "loss.gan_label_smoothing": 0.0, "loss.custom": {}, "training.stages": [],
}  # fmt: skip
"""What this project added to the guide's training."""
MEASURED = {
    "loss.w_render": 0.5, "loss.w_ssim": 1.0, "loss.w_roughness": 1.5, "loss.w_normal_map": 4.0,
    "training.ema_decay": 0.999, "data.augment_flips": True, "data.augment_rotations": True, "data.drop_views": 0.2,
}  # fmt: skip
"""What `default` has of `recipe`."""
LATE_GAN = {"training.gan_start_epoch": 60, "loss.w_gan": 0.01}
HIGHLIGHTS = {
    "default": MEASURED | LATE_GAN,
    "guide": GUIDE | OFF,
    "quick_test": {
        "model.encoder_backbone": "resnet18", "model.transformer_depth": 2, "training.epochs": 20,
    },
    "lightweight": {"model.encoder_backbone": "resnet50", "model.use_gan": False, "loss.w_gan": 0.0},
    "high_quality": {"model.encoder_backbone": "resnet101", "model.transformer_depth": 6},
    "fast_iteration": {"model.encoder_backbone": "resnet18", "training.epochs": 50},
    "normal_focused": {"loss.w_normal": 1.5, "loss.w_normal_map": 2.0},
    "recipe": MEASURED | {
        "data.render": "online", "model.align": "plane", "model.use_gan": False,
        "training.epochs": 230, "optimizer.g_lr": 4e-4, "data.builtin_count": 4160, "data.any_roughness": 0.65,
        "data.other_relief": 0.4,
    },
    "recipe_large": MEASURED | {
        "data.render": "online", "model.align": "plane", "model.encoder_backbone": "resnet50",
        "model.transformer_depth": 4, "loss.w_gan": 0.01,
    },
    "demo": {"model.encoder_type": "unet", "data.image_size": 64},
}  # fmt: skip
"""The guide's table of presets; default, the two recipes and demo are this project's own."""

TEMPLATE = """
from neuropbr_dist.config import TrainConfig

def get_config():
    cfg = TrainConfig()
    cfg.model.encoder_backbone = 'resnet101'
    cfg.model.transformer_depth = 6
    cfg.model.use_gan = True

    cfg.training.epochs = 200
    cfg.training.batch_size = 8

    cfg.loss.w_l1 = 1.0
    cfg.loss.w_ssim = 0.5
    cfg.loss.w_normal = 0.7

    cfg.optimizer.g_lr = 1e-4
    cfg.optimizer.d_lr = 4e-4
    cfg.optimizer.scheduler = 'cosine'
    return cfg
"""
"""The guide's custom config."""


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_presets_are_the_guides():
    assert PRESETS.keys() == HIGHLIGHTS.keys()


@pytest.mark.parametrize("name", HIGHLIGHTS)
def test_preset_has_its_highlights_and_passes_the_checks(name):
    cfg = resolve(load(name))
    assert {key: field(cfg, key) for key in HIGHLIGHTS[name]} == HIGHLIGHTS[name]


def test_a_field_that_no_preset_sets_is_the_guides():
    assert load("guide") == TrainConfig()


def test_the_default_is_the_guide_but_for_what_was_measured():
    assert {name: new for name, (_, new) in differences(load("guide"), load("default")).items()} == (
        MEASURED | LATE_GAN
    )


SETS = {
    "built-in": ["data.builtin=true"],
    "stored views without cameras": ["data.input_dir=IN", "data.output_dir=OUT", "model.align=none"],
    "maps alone": ["data.materials_dir=MAPS"],
    "rendered views": ["data.builtin=true", "data.render=online"],
}


@pytest.mark.parametrize("what", SETS)
def test_the_default_asks_nothing_that_only_some_sets_have(what):
    resolve_data(Overrides(assignments=tuple(SETS[what])).configuration().data)


def test_what_a_recipe_asks_of_rendered_views_is_refused_of_stored_ones():
    with pytest.raises(UserError, match="stored"):
        Overrides(config="recipe", assignments=("data.render=stored",)).configuration()


def test_the_two_recipes_and_the_default_share_their_losses():
    losses = {name: load(name).loss for name in ("recipe", "recipe_large", "default")}
    assert dataclasses.replace(losses["recipe"], w_gan=0.01) == losses["recipe_large"] == losses["default"]


def test_deeper_and_lighter_than_the_default():
    default = TrainConfig()
    assert load("high_quality").model.transformer_depth > default.model.transformer_depth
    assert load("fast_iteration").training.epochs < default.training.epochs
    assert load("normal_focused").loss.w_normal > default.loss.w_normal


def test_presets_share_nothing():
    load("demo").model.encoder_channels.append(7)
    assert 7 not in load("demo").model.encoder_channels


@pytest.mark.parametrize("name", HIGHLIGHTS)
def test_yaml_round_trip(name):
    cfg = load(name)
    assert from_yaml(to_yaml(cfg), "") == cfg
    assert yaml.safe_load(to_yaml(cfg)).keys() == {f.name for f in dataclasses.fields(TrainConfig)}


def test_yaml_names_only_what_differs(tmp_path):
    path = written(tmp_path, "my.yaml", "model:\n  transformer_depth: 6\noptimizer:\n  g_lr: 1e-4\n")
    changed = differences(TrainConfig(), load(path))
    assert changed == {"model.transformer_depth": (4, 6), "optimizer.g_lr": (2e-4, 1e-4)}


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n"])
def test_empty_yaml_is_the_default(tmp_path, text):
    assert load(written(tmp_path, "my.yaml", text)) == TrainConfig()


def test_the_guides_python_template(tmp_path):
    cfg = load(written(tmp_path, "my_config.py", TEMPLATE))
    assert {name: new for name, (_, new) in differences(TrainConfig(), cfg).items()} == {
        "model.encoder_backbone": "resnet101",
        "model.transformer_depth": 6,
        "training.epochs": 200,
        "training.batch_size": 8,
        "loss.w_ssim": 0.5,
        "loss.w_normal": 0.7,
        "optimizer.g_lr": 1e-4,
        "optimizer.d_lr": 4e-4,
    }


def test_python_values_meet_the_fields_types(tmp_path):
    cfg = load(written(tmp_path, "c.py", TEMPLATE.replace("w_l1 = 1.0", "w_l1 = 1")))
    assert type(cfg.loss.w_l1) is float


PYTHON_FAULTS = {
    "unknown field": (TEMPLATE.replace("epochs = 200", "epoch = 200"), ["c.py", "epoch"]),
    "unknown field at the top": (
        "from neuropbr_dist.config import TrainConfig\ncfg = TrainConfig()\ncfg.model.depth = 1\n",
        ["c.py", "depth"],
    ),
    "wrong type": (
        TEMPLATE.replace("batch_size = 8", "batch_size = '8'"),
        ["c.py", "training.batch_size", "'8'", "int"],
    ),
    "not a choice": (
        TEMPLATE.replace("'cosine'", "'cosin'"),
        ["c.py", "optimizer.scheduler", "'cosin'", "cosine, step, plateau, none"],
    ),
    "syntax": ("def get_config(:\n", ["c.py", "line 1"]),
    "raises": (
        "def half(n):\n    return 1 / n\n\n\ndef get_config():\n    half(0)\n",
        ["c.py, line 2: ZeroDivisionError: division by zero"],
    ),
    "raises in its body": ("import os\nos.environ['NO_SUCH']\n", ["c.py, line 2: KeyError: 'NO_SUCH'"]),
    "raises two lines": ("raise ValueError('one\\ntwo')\n", ["c.py, line 1: ValueError: one two"]),
    "raises without a word": ("assert False\n", ["c.py, line 1: AssertionError"]),
    "exits": ("import sys\n\nsys.exit(3)\n", ["c.py, line 3: SystemExit: 3"]),
    "takes an argument": ("def get_config(size):\n    pass\n", ["c.py", "TypeError: get_config()", "'size'"]),
    "not a function": ("get_config = 1\n", ["c.py", "no function get_config()"]),
    "no get_config": ("cfg = 1\n", ["c.py", "get_config()"]),
    "returns something else": ("def get_config():\n    return {}\n", ["c.py", "dict", "TrainConfig"]),
    "the guide's module": (
        TEMPLATE.replace("neuropbr_dist.config", "train_config"),
        ["c.py", "train_config"],
    ),
}


@pytest.mark.parametrize("fault", PYTHON_FAULTS)
def test_faults_of_a_python_file_are_named(tmp_path, fault):
    text, named = PYTHON_FAULTS[fault]
    with pytest.raises(UserError) as found:
        load(written(tmp_path, "c.py", text))
    assert_names(found.value, named)


YAML_FAULTS = {
    "unknown part": ("modle:\n  use_gan: true\n", ["c.yaml", "modle", "model"]),
    "unknown field": (
        "model:\n  transformer_dept: 6\n", ["c.yaml", "model.transformer_dept", "model.transformer_depth"],
    ),
    "unlike any field": ("loss:\n  zzz: 6\n", ["c.yaml", "loss.zzz", "w_l1", "custom_module"]),
    "text for a number": ("training:\n  epochs: many\n", ["c.yaml", "training.epochs", "'many'", "int"]),
    "fraction for a count": ("training:\n  epochs: 1.5\n", ["c.yaml", "training.epochs", "1.5", "int"]),
    "number for a flag": ("model:\n  use_gan: 1\n", ["c.yaml", "model.use_gan", "1", "true or false"]),
    "flag for a number": ("loss:\n  w_l1: true\n", ["c.yaml", "loss.w_l1", "True", "float"]),
    "not a choice": (
        "model:\n  encoder_backbone: resnet20\n",
        ["c.yaml", "model.encoder_backbone", "resnet20", "resnet18"],
    ),
    "scalar for a list": (
        "model:\n  encoder_channels: 64\n", ["c.yaml", "model.encoder_channels", "64", "list of int"],
    ),
    "list of something else": (
        "model:\n  encoder_channels: [64, wide]\n",
        ["c.yaml", "model.encoder_channels", "wide", "list of int"],
    ),
    "none where none can be": ("training:\n  epochs: null\n", ["c.yaml", "training.epochs", "None", "int"]),
    "part without fields": ("model:\n", ["c.yaml", "model", "None"]),
    "a list of parts": ("- model\n", ["c.yaml", "mapping", "list"]),
    "not YAML": ("model: [\n", ["c.yaml", "not YAML", "line"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", YAML_FAULTS)
def test_faults_of_a_yaml_file_are_named(tmp_path, fault):
    text, named = YAML_FAULTS[fault]
    with pytest.raises(UserError) as found:
        load(written(tmp_path, "c.yaml", text))
    assert_names(found.value, named)


@pytest.mark.parametrize(
    "source, named",
    [
        ("quicktest", ["quicktest", "quick_test", ".yaml", ".py"]),
        ("no/such.yaml", ["no/such.yaml", "no such file"]),
        ("no/such.py", ["no/such.py", "no such file"]),
        ("configs/high_quality.py", ["no such file", "--config high_quality"]),
    ],
)
def test_what_is_neither_preset_nor_file(source, named):
    with pytest.raises(UserError) as found:
        load(source)
    assert_names(found.value, ["--config", *named])


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(UserError) as found:
        load(str(tmp_path / "c.yaml"))
    assert_names(found.value, ["c.yaml", "UTF-8"])


def test_every_field_has_a_docstring():
    """A bare string under each field; the README's reference is made of them."""
    undocumented = []
    for part in ast.parse(Path(schema.__file__).read_text()).body:
        if not isinstance(part, ast.ClassDef):
            continue
        assert ast.get_docstring(part)
        for statement, after in zip(part.body, [*part.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and part.name != "TrainConfig":
                text = after.value.value if isinstance(after, ast.Expr) else ""
                if not (isinstance(text, str) and text.endswith(".")):
                    undocumented.append(f"{part.name}.{statement.target.id}")
    assert not undocumented
