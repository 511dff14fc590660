"""Impossible combinations are refused at start, by the field's name."""

import re

import pytest

from neuropbr_dist.commands.train import parser as train_parser
from neuropbr_dist.config import TrainConfig, check_size, resolve, set_text
from neuropbr_dist.errors import UserError
from tests.support.said import assert_names

IMPOSSIBLE = [
    ("data.input_dir=x", "data.output_dir = None", "both or neither"),
    ("data.output_dir=x", "data.input_dir = None", "both or neither"),
    ("data.use_dirty_renders=true data.render_curriculum=1", "data.render_curriculum"),
    ("transform.use_imagenet_stats=true transform.mean=[0, 0, 0]", "transform.mean"),
    ("training.shard=node training.engine=ddp", "FSDP's", "is ddp", "--shard world"),
    ("training.shard=node training.engine=single", "is single", "--engine fsdp"),
    ("training.shard=node training.ds_config=zero2.json", "is deepspeed"),
    ("training.cpu_offload=true training.engine=ddp", "FSDP's", "is ddp", "zero2_offload"),
    ("training.cpu_offload=true training.ds_config=zero2.json", "is deepspeed"),
    ("training.cpu_offload=true training.engine=ddp training.engine_discriminator=fsdp", "is ddp"),
    ("model.transformer_num_heads=3", "does not divide", "model.transformer_dim = 2048"),
    ("model.freeze_backbone=true model.encoder_type=unet", "resnet"),
    ("data.mixtures=0.3 data.builtin=true data.render=stored model.align=none", "model.align = plane"),
    ("model.discriminator_use_sigmoid=true", "loss.gan_loss_type = bce"),
    ("loss.gan_label_smoothing=0.1", "loss.gan_loss_type = bce"),
    ("loss.w_feature_matching=1 model.use_gan=false", "model.use_gan = true"),
    ("training.use_amp=false training.precision=bf16", "training.precision = bf16", "fp32"),
    ("training.ds_config=zero2.json training.engine=fsdp", "zero2.json", "training.engine"),
    ("training.ds_config_discriminator=z.json training.engine=ddp", "z.json", "engine_discriminator"),
]
FLAGS = {"training.ds_config": "--ds", "training.ds_config_discriminator": "--ds-discriminator"}


@pytest.mark.parametrize("settings", IMPOSSIBLE, ids=lambda s: s[0])
def test_impossible(settings):
    assignments, *allowed = settings
    with pytest.raises(UserError) as found:
        resolve(configured(assignments))
    first = re.match(r"[a-z]+\.\w+", assignments)[0]
    assert_names(found.value, [FLAGS.get(first, first), *allowed])


@pytest.mark.parametrize(
    "assignments",
    [
        "model.encoder_type=unet",
        "model.freeze_backbone=true",
        "model.discriminator_use_sigmoid=true loss.gan_loss_type=bce",
        "training.use_amp=false",
        "training.use_amp=false training.precision=fp32",
        "training.ds_config=zero2.json",
        "training.ds_config=zero2.json training.engine=deepspeed",
        "training.engine_discriminator=deepspeed training.ds_config_discriminator=z.json",
        "training.shard=node",
        "training.shard=node training.cpu_offload=true training.engine=fsdp",
        "training.shard=node training.engine=ddp training.engine_discriminator=fsdp",
    ],
)
def test_possible(assignments):
    resolve(configured(assignments))


def configured(assignments):
    """`part.field=value part.field=value`; a value may hold spaces."""
    cfg = TrainConfig()
    for assignment in re.split(r" (?=[a-z]+\.)", assignments):
        set_text(cfg, assignment)
    return cfg


@pytest.mark.parametrize("size, multiple, nearest", [(100, 16, 96), (20, 32, 32), (2047, 64, 2048)])
def test_size_against_the_stride_names_the_nearest(size, multiple, nearest):
    with pytest.raises(UserError) as found:
        check_size(size, multiple)
    assert_names(
        found.value, ["data.image_size", f"{size} px", f"multiple of {multiple}", f"nearest: {nearest}"]
    )
    check_size(nearest, multiple)


@pytest.mark.parametrize("flag", ["--config", "--resume"])
def test_a_shell_variable_that_is_not_set_is_refused(flag, capsys):
    with pytest.raises(SystemExit):
        train_parser().parse_args([flag, ""])
    assert f"argument {flag}: empty text" in capsys.readouterr().err
