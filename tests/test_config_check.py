"""Impossible values and combinations are refused at start, by the field's name."""

import re

import pytest

from neuropbr_dist.commands.train import parser as train_parser
from neuropbr_dist.config import TrainConfig, check_size, resolve, set_text
from neuropbr_dist.errors import UserError
from tests.test_config_presets import assert_names

IMPOSSIBLE = [
    ("training.checkpoint_dir=''", "empty text"),
    ("data.builtin_cache=''", "empty text"),
    ("data.val_ratio=0", "above 0"),
    ("data.val_ratio=1", "below 1"),
    ("data.num_workers=-1", "0 or more"),
    ("data.prefetch_factor=0", "1 or more"),
    ("data.builtin_count=1", "2 or more"),
    ("data.image_size=8", "16 or more"),
    ("data.input_dir=x", "data.output_dir = None", "both or neither"),
    ("data.output_dir=x", "data.input_dir = None", "both or neither"),
    ("data.use_dirty_renders=true data.render_curriculum=1", "data.render_curriculum"),
    ("transform.mean=[0.5, 0.5]", "three numbers"),
    ("transform.std=[0.5, 0.5]", "three numbers"),
    ("transform.std=[0.5, 0, 0.5]", "above 0"),
    ("transform.use_imagenet_stats=true transform.mean=[0, 0, 0]", "transform.mean"),
    ("training.shard=node training.engine=ddp", "FSDP's", "is ddp", "--shard world"),
    ("training.shard=node training.engine=single", "is single", "--engine fsdp"),
    ("training.shard=node training.ds_config=zero2.json", "is deepspeed"),
    ("training.cpu_offload=true training.engine=ddp", "FSDP's", "is ddp", "zero2_offload"),
    ("training.cpu_offload=true training.ds_config=zero2.json", "is deepspeed"),
    ("training.cpu_offload=true training.engine=ddp training.engine_discriminator=fsdp", "is ddp"),
    ("model.transformer_dim=0", "1 or more"),
    ("model.transformer_num_heads=3", "does not divide", "model.transformer_dim = 2048"),
    ("model.transformer_num_heads=0", "does not divide"),
    ("model.transformer_depth=0", "1 or more"),
    ("model.transformer_mlp_ratio=0", "above 0"),
    ("model.transformer_attn_drop=1", "0 to below 1"),
    ("model.transformer_proj_drop=-0.1", "0 to below 1"),
    ("model.transformer_drop_path_rate=1.5", "0 to below 1"),
    ("model.encoder_channels=[64]", "two or more positive widths"),
    ("model.encoder_channels=[64, 0]", "two or more positive widths"),
    ("model.discriminator_n_layers=0", "1 to 8"),
    ("model.discriminator_n_layers=9", "1 to 8"),
    ("model.discriminator_ndf=0", "1 or more"),
    ("model.freeze_backbone=true model.encoder_type=unet", "resnet"),
    ("model.discriminator_use_sigmoid=true", "loss.gan_loss_type = bce"),
    ("loss.gan_label_smoothing=0.1", "loss.gan_loss_type = bce"),
    ("loss.gan_label_smoothing=1", "from 0 to below 1"),
    *((f"loss.w_{name}=-1", "0 or more") for name in ("l1", "ssim", "normal", "gan", "discriminator",
                                                      "albedo", "roughness", "metallic", "normal_map")),
    ("loss.custom={mse: -1}", "mse", "0 or more"),
    *((f"optimizer.{name}=0", "above 0") for name in ("g_lr", "d_lr", "eps", "gamma", "factor", "step_size")),
    ("optimizer.g_betas=[0.5]", "two numbers"),
    ("optimizer.d_betas=[0.5, 1]", "two numbers"),
    *((f"optimizer.{name}=-1", "0 or more") for name in ("scheduler_warmup_epochs", "scheduler_min_lr",
                                                         "g_weight_decay", "d_weight_decay", "patience")),
    ("optimizer.scheduler_epochs=0", "above 0"),
    *((f"training.{name}=0", "1 or more") for name in (
        "epochs", "batch_size", "d_steps_per_g_step", "max_skipped_steps", "val_every_n_epochs",
        "save_every_n_epochs", "save_latest_every_n_epochs", "keep_latest", "log_every_n_steps", "log_images_every_n_epochs",
        "global_batch_size", "save_every_n_steps")),
    ("training.gan_start_epoch=-1", "0 or more"),
    ("training.grad_clip_norm=0", "above 0, or none"),
    ("training.timeout_minutes=0", "above 0"),
    ("training.use_amp=false training.precision=bf16", "training.precision = bf16", "fp32"),
    ("training.ds_config=zero2.json training.engine=fsdp", "zero2.json", "training.engine"),
    ("training.ds_config_discriminator=z.json training.engine=ddp", "z.json", "engine_discriminator"),
]  # fmt: skip
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
        "data.val_ratio=0.999",
        "data.image_size=16",
        "data.num_workers=0",
        "model.encoder_type=unet",
        "model.freeze_backbone=true",
        "model.discriminator_use_sigmoid=true loss.gan_loss_type=bce",
        "training.use_amp=false",
        "training.use_amp=false training.precision=fp32",
        "training.gan_start_epoch=0",
        "training.grad_clip_norm=null",
        "training.ds_config=zero2.json",
        "training.ds_config=zero2.json training.engine=deepspeed",
        "training.engine_discriminator=deepspeed training.ds_config_discriminator=z.json",
        "training.shard=node",
        "training.shard=node training.cpu_offload=true training.engine=fsdp",
        "training.shard=node training.engine=ddp training.engine_discriminator=fsdp",
        "optimizer.scheduler_warmup_epochs=0",
        "loss.w_l1=0",
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
