"""`training.stages`: one form in YAML, Python and `--set`, and what can't be is refused in one line."""

from __future__ import annotations

import pytest

from neuropbr_dist.commands.train import config_of
from neuropbr_dist.config import Stage, as_one_stage, from_yaml, load, resolve, stages_of, to_yaml
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.stages import check_stages
from tests.support.said import assert_names

TWO = "[{until_epoch: 2, image_size: 32, global_batch_size: 8, batch_size: 4}, {until_epoch: 8, image_size: 64, lr_scale: 5e-1}]"
SET = ["--set", f"training.stages={TWO}"]
STAGES = [
    Stage(until_epoch=2, image_size=32, global_batch_size=8, batch_size=4),
    Stage(until_epoch=8, image_size=64, lr_scale=0.5),
]
PYTHON = """
from neuropbr_dist.config import TrainConfig, Stage
def get_config():
    cfg = TrainConfig()
    cfg.training.stages = [
        Stage(until_epoch=2, image_size=32, global_batch_size=8, batch_size=4),
        {"until_epoch": 8, "image_size": 64, "lr_scale": 0.5},
    ]
    return cfg
"""


def test_yaml_python_and_set_mean_the_same(tmp_path):
    (tmp_path / "a.yaml").write_text(f"training:\n  stages: {TWO}\n")
    (tmp_path / "a.py").write_text(PYTHON)
    for words in (["--config", str(tmp_path / "a.yaml")], ["--config", str(tmp_path / "a.py")], SET):
        cfg = config_of(words)
        assert cfg.training.stages == STAGES and cfg.training.epochs == 8
        assert from_yaml(to_yaml(cfg), "") == cfg
    assert resolve(from_yaml(to_yaml(cfg), "")) == cfg, "a saved configuration is taken again"


def test_named_on_the_command_line_they_take_the_place_of_a_presets_one_stage():
    cfg = config_of(["--config", "demo", *SET])
    assert (cfg.data.image_size, cfg.training.batch_size, cfg.training.global_batch_size) == (None, 1, None)
    assert stages_of(cfg) == STAGES


def test_a_run_that_names_none_is_one_stage():
    cfg = load("demo")
    (only,) = stages_of(cfg)
    assert only == Stage(until_epoch=10, image_size=64, global_batch_size=8, batch_size=4)
    assert as_one_stage(cfg, only) == cfg


@pytest.mark.parametrize("epochs, edges", [(4, [1, 4]), (8, [2, 8]), (80, [20, 80]), (9, [2, 9])])
def test_epochs_scales_the_edges(epochs, edges):
    cfg = config_of([*SET, "--epochs", str(epochs)])
    assert [stage.until_epoch for stage in cfg.training.stages] == edges and cfg.training.epochs == epochs


# What stands in place of the stages, with other words -> what the message names.
REFUSED = {
    "3": ["training.stages = 3", "list of map of until_epoch"],
    "[3]": ["training.stages, stage 1 = 3", "map of until_epoch"],
    "[{image_size: 32}]": ["training.stages, stage 1", "until_epoch is missing"],
    "[{until_epoch: 2, image_siz: 32}]": ["stage 1: unknown key 'image_siz'", "did you mean image_size?"],
    "[{until_epoch: 2, image_size: 8}]": ["stage 1: image_size = 8", "int, 16 or more"],
    "[{until_epoch: 2, lr_scale: 0}]": ["stage 1: lr_scale = 0", "above 0"],
    "[{until_epoch: 2}, {until_epoch: 2}]": ["stage 2: until_epoch = 2", "stage 1 ends at epoch 2", "rise"],
    "[{until_epoch: 3}, {until_epoch: 2}]": ["stage 2: until_epoch = 2", "stage 1 ends at epoch 3"],
    "[{until_epoch: 3, sample_ranks: 2}]": ["stage 1: sample_ranks = 2", "allowed: 1"],
    "[{until_epoch: 3}] --batch-size 1": ["training.batch_size (--batch-size) beside training.stages"],
    "[{until_epoch: 3}] --set data.image_size=32": ["data.image_size (--set", "beside training.stages"],
    "[{until_epoch: 3}] --set training.global_batch_size=2": ["training.global_batch_size", "leave it out"],
    "[{until_epoch: 1}, {until_epoch: 2}] --epochs 1": ["--epochs) = 1", "2 stages", "edges are 1, 2"],
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_line(words):
    stages, *others = words.split(" --")
    given = [word for other in others for word in f"--{other}".split()]
    with pytest.raises(UserError) as found:
        config_of(["--set", f"training.stages={stages}", *given])
    assert_names(found.value, REFUSED[words])
    assert "\n" not in str(found.value)


def test_one_stages_fields_in_a_file_are_refused_beside_them():
    for part, field in (("data", "image_size: 64"), ("training", "batch_size: 2"), ("training", "epochs: 9")):
        cfg = from_yaml(
            f"training:\n  stages: {TWO}\n" + (f"{part}:\n  {field}\n" if part == "data" else f"  {field}\n"),
            "",
        )
        with pytest.raises(UserError, match=rf"{part}\.{field.replace(': ', ' = ')}.*training\.stages"):
            resolve(cfg)


@pytest.mark.parametrize(
    "stage, world, named",
    [
        ("image_size: 62", 1, ["stage 2 (62 px): image_size: pictures of 62 px", "multiple of 4 px", "64"]),
        (
            "image_size: 16",
            1,
            ["stage 2 (16 px): model.discriminator_n_layers = 3 needs", "raise image_size"],
        ),
        ("global_batch_size: 2", 3, ["stage 2 (the set's own side): global_batch_size = 2", "world size 3"]),
    ],
)
def test_a_stage_that_cannot_be_trained_is_named_before_anything_is_opened(stage, world, named):
    cfg = config_of(
        ["--config", "demo", "--set", f"training.stages=[{{until_epoch: 1}}, {{until_epoch: 2, {stage}}}]"]
    )
    with pytest.raises(UserError) as found:
        check_stages(cfg, world)
    assert_names(found.value, ["training.stages", *named])
