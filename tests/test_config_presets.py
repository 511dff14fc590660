"""Presets by the guide's names, and configurations as files."""

import ast
import dataclasses
from pathlib import Path

import pytest
import yaml

from neuropbr_dist.config import PRESETS, TrainConfig, differences, from_yaml, load, resolve, schema, to_yaml
from neuropbr_dist.errors import UserError
from tests.support.said import assert_names
from tests.support.tiny import field

HIGHLIGHTS = {
    "default": {
        "model.encoder_type": "resnet", "model.encoder_backbone": "resnet50", "model.encoder_stride": 1,
        "model.transformer_dim": 2048, "model.transformer_num_heads": 32, "model.transformer_depth": 4,
        "model.transformer_mlp_ratio": 4, "model.discriminator_n_layers": 6, "model.discriminator_ndf": 64,
        "model.use_gan": True, "training.gan_start_epoch": 5, "loss.w_l1": 1.0, "loss.w_ssim": 0.3,
        "loss.w_normal": 0.5, "loss.w_gan": 0.05, "loss.gan_loss_type": "hinge",
        "optimizer.scheduler": "cosine", "optimizer.scheduler_min_lr": 1e-6,
        "optimizer.scheduler_warmup_epochs": 5, "training.grad_clip_norm": 1.0,
        "training.save_every_n_epochs": 5, "training.log_every_n_steps": 10, "data.val_ratio": 0.1,
        "training.seed": 42, "training.checkpoint_dir": "./checkpoints",
    },
    "quick_test": {
        "model.encoder_backbone": "resnet18", "model.transformer_depth": 2, "training.epochs": 20,
    },
    "lightweight": {"model.encoder_backbone": "resnet50", "model.use_gan": False, "loss.w_gan": 0.0},
    "high_quality": {"model.encoder_backbone": "resnet101", "model.transformer_depth": 6},
    "fast_iteration": {"model.encoder_backbone": "resnet18", "training.epochs": 50},
    "normal_focused": {"loss.w_normal": 1.5, "loss.w_normal_map": 2.0},
    "demo": {"model.encoder_type": "unet", "data.image_size": 64},
}  # fmt: skip
"""The guide's table of presets and its defaults."""

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
