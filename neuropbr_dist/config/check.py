"""Combinations that can't train, refused at start with the field's name."""

from __future__ import annotations

import dataclasses

from neuropbr_dist.config.deepspeed import anywhere
from neuropbr_dist.config.schema import DataConfig, ModelConfig, TrainConfig, TransformConfig
from neuropbr_dist.errors import UserError

IMAGENET_STATS = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
UNSET_STATS = TransformConfig().mean, TransformConfig().std
NOT_THE_NETWORK = (
    "encoder_pretrained", "transformer_attn_drop", "transformer_proj_drop", "transformer_drop_path_rate",
)  # fmt: skip
"""Fields of `model` that a resumed run may change."""
BATCH_NORMS = ("batch", "sync_batch", "frozen_batch")
"""The same tensors and the same output in evaluation."""


def refuse_unless(ok: bool, message: str) -> None:
    """Raise a `UserError` with `message` where `ok` is false."""
    if not ok:
        raise UserError(message)


def resolve(cfg: TrainConfig) -> TrainConfig:
    """Fold legacy and shorthand fields into the ones that are read, check, and name files as from any folder. In place."""
    fold_legacy(cfg)
    if cfg.transform.use_imagenet_stats:
        refuse_unless(
            (cfg.transform.mean, cfg.transform.std) in (UNSET_STATS, IMAGENET_STATS),
            f"transform.use_imagenet_stats = true, but transform.mean = {cfg.transform.mean} and "
            f"transform.std = {cfg.transform.std}; set one or the other",
        )
        cfg.transform.mean, cfg.transform.std = map(list, IMAGENET_STATS)
    if not cfg.training.use_amp:
        refuse_unless(
            cfg.training.precision in ("auto", "fp32"),
            f"training.use_amp = false means fp32, but training.precision = {cfg.training.precision}",
        )
        cfg.training.precision = "fp32"
    check(cfg)
    t = cfg.training
    t.ds_config, t.ds_config_discriminator = (
        None if given is None else anywhere(given) for given in (t.ds_config, t.ds_config_discriminator)
    )
    return cfg


def fold_legacy(cfg: TrainConfig) -> None:
    """`use_dirty_renders` into `render_curriculum`; it is off afterwards, so that a later value wins."""
    data = cfg.data
    if not data.use_dirty_renders:
        return
    refuse_unless(
        data.render_curriculum != 1,
        "data.use_dirty_renders = true means data.render_curriculum = 2, but render_curriculum is 1",
    )
    data.render_curriculum, data.use_dirty_renders = 2, False


def check(cfg: TrainConfig) -> None:
    """Raises UserError on the first impossible value."""
    for part, fields in dataclasses.asdict(cfg).items():
        for name, value in fields.items():
            refuse_unless(value != "", f"{part}.{name} is empty text; name something or leave it out")
    check_data(cfg.data)
    check_model(cfg.model)
    check_losses(cfg)
    check_optimizer(cfg)
    check_training(cfg)


def check_data(data: DataConfig) -> None:
    """Where samples come from and how they are cut."""
    refuse_unless(0 < data.val_ratio < 1, f"data.val_ratio = {data.val_ratio}; allowed: above 0, below 1")
    refuse_unless(data.num_workers >= 0, f"data.num_workers = {data.num_workers}; allowed: 0 or more")
    refuse_unless(
        data.prefetch_factor >= 1, f"data.prefetch_factor = {data.prefetch_factor}; allowed: 1 or more"
    )
    refuse_unless(data.builtin_count >= 2, f"data.builtin_count = {data.builtin_count}; allowed: 2 or more")
    refuse_unless(
        data.image_size is None or data.image_size >= 16,
        f"data.image_size = {data.image_size}; allowed: 16 or more, or none for the set's own size",
    )
    refuse_unless(
        (data.input_dir is None) == (data.output_dir is None),
        f"data.input_dir = {data.input_dir}, data.output_dir = {data.output_dir}; name both or neither",
    )
    refuse_unless(
        data.packed_dir is None or data.input_dir is None,
        f"data.packed_dir (--data) = {data.packed_dir} and data.input_dir = {data.input_dir}; name one or the other",
    )
    refuse_unless(data.cache_mib >= 0, f"data.cache_mib = {data.cache_mib}; allowed: 0 or more")


def check_model(m: ModelConfig) -> None:
    """Sizes that no network can have."""
    heads, dim = m.transformer_num_heads, m.transformer_dim
    refuse_unless(dim > 0, f"model.transformer_dim = {dim}; allowed: 1 or more")
    refuse_unless(
        heads > 0 and dim % heads == 0,
        f"model.transformer_num_heads = {heads} does not divide model.transformer_dim = {dim}",
    )
    refuse_unless(
        m.transformer_depth >= 1, f"model.transformer_depth = {m.transformer_depth}; allowed: 1 or more"
    )
    refuse_unless(
        m.transformer_mlp_ratio > 0,
        f"model.transformer_mlp_ratio = {m.transformer_mlp_ratio}; allowed: above 0",
    )
    for name in ("transformer_attn_drop", "transformer_proj_drop", "transformer_drop_path_rate"):
        refuse_unless(0 <= getattr(m, name) < 1, f"model.{name} = {getattr(m, name)}; allowed: 0 to below 1")
    refuse_unless(
        len(m.encoder_channels) >= 2 and all(c > 0 for c in m.encoder_channels),
        f"model.encoder_channels = {m.encoder_channels}; allowed: two or more positive widths",
    )
    refuse_unless(
        1 <= m.discriminator_n_layers <= 8,
        f"model.discriminator_n_layers = {m.discriminator_n_layers}; allowed: 1 to 8",
    )
    refuse_unless(
        m.discriminator_ndf >= 1, f"model.discriminator_ndf = {m.discriminator_ndf}; allowed: 1 or more"
    )
    refuse_unless(
        not m.freeze_backbone or m.encoder_type == "resnet",
        "model.freeze_backbone = true needs model.encoder_type = resnet; unet has no backbone to freeze",
    )


def check_losses(cfg: TrainConfig) -> None:
    """Weights, and a loss that fits what the discriminator ends in."""
    loss = cfg.loss
    for name in (
        "l1",
        "ssim",
        "normal",
        "gan",
        "discriminator",
        "albedo",
        "roughness",
        "metallic",
        "normal_map",
    ):
        weight = getattr(loss, f"w_{name}")
        refuse_unless(weight >= 0, f"loss.w_{name} = {weight}; allowed: 0 or more")
    smoothing = loss.gan_label_smoothing
    refuse_unless(0 <= smoothing < 1, f"loss.gan_label_smoothing = {smoothing}; allowed: from 0 to below 1")
    refuse_unless(
        smoothing == 0 or loss.gan_loss_type == "bce",
        f"loss.gan_label_smoothing = {smoothing} needs loss.gan_loss_type = bce; hinge has no targets",
    )
    for name, weight in loss.custom.items():
        refuse_unless(weight >= 0, f"loss.custom: {name} = {weight}; allowed: 0 or more")
    refuse_unless(
        not cfg.model.discriminator_use_sigmoid or loss.gan_loss_type == "bce",
        "model.discriminator_use_sigmoid = true needs loss.gan_loss_type = bce; hinge wants raw logits",
    )


def check_optimizer(cfg: TrainConfig) -> None:
    """Learning rates, betas and the schedule's numbers."""
    o = cfg.optimizer
    for name in ("g_lr", "d_lr", "eps", "gamma", "factor", "step_size"):
        refuse_unless(getattr(o, name) > 0, f"optimizer.{name} = {getattr(o, name)}; allowed: above 0")
    for name in ("g_betas", "d_betas"):
        betas = getattr(o, name)
        refuse_unless(
            len(betas) == 2 and all(0 <= b < 1 for b in betas),
            f"optimizer.{name} = {betas}; allowed: two numbers from 0 to below 1",
        )
    for name in (
        "scheduler_warmup_epochs", "scheduler_min_lr", "g_weight_decay", "d_weight_decay", "patience",
    ):  # fmt: skip
        refuse_unless(getattr(o, name) >= 0, f"optimizer.{name} = {getattr(o, name)}; allowed: 0 or more")
    horizon = o.scheduler_epochs
    refuse_unless(
        horizon is None or horizon > 0, f"optimizer.scheduler_epochs = {horizon}; allowed: above 0, or none"
    )


def check_training(cfg: TrainConfig) -> None:
    """The loop, and engines against the files given for them."""
    t, std = cfg.training, cfg.transform.std
    for name in (
        "epochs", "batch_size", "d_steps_per_g_step", "max_skipped_steps", "val_every_n_epochs",
        "save_every_n_epochs", "save_latest_every_n_epochs", "keep_latest", "log_every_n_steps", "log_images_every_n_epochs",
    ):  # fmt: skip
        refuse_unless(getattr(t, name) >= 1, f"training.{name} = {getattr(t, name)}; allowed: 1 or more")
    refuse_unless(
        t.gan_start_epoch >= 0, f"training.gan_start_epoch = {t.gan_start_epoch}; allowed: 0 or more"
    )
    for name in ("global_batch_size", "save_every_n_steps"):
        value = getattr(t, name)
        refuse_unless(value is None or value >= 1, f"training.{name} = {value}; allowed: 1 or more, or none")
    minutes = t.save_every_n_minutes
    refuse_unless(
        minutes is None or minutes > 0,
        f"training.save_every_n_minutes = {minutes}; allowed: above 0, or none",
    )
    clip = t.grad_clip_norm
    refuse_unless(clip is None or clip > 0, f"training.grad_clip_norm = {clip}; allowed: above 0, or none")
    decay = t.ema_decay
    refuse_unless(
        decay is None or 0 < decay < 1, f"training.ema_decay = {decay}; allowed: above 0, below 1, or none"
    )
    refuse_unless(t.timeout_minutes > 0, f"training.timeout_minutes = {t.timeout_minutes}; allowed: above 0")
    refuse_unless(
        len(std) == 3 and all(s > 0 for s in std) and len(cfg.transform.mean) == 3,
        f"transform.mean = {cfg.transform.mean}, transform.std = {std}; allowed: three numbers each, std above 0",
    )
    refuse_unless(
        t.ds_config is None or t.engine in ("auto", "deepspeed"),
        f"--ds {t.ds_config} needs training.engine = deepspeed, but it is {t.engine}",
    )
    # On one process `auto` means `single`, which leaves a larger run's `node` alone: it may go on there.
    refuse_unless(
        not t.cpu_offload or fsdp_possible(t.engine, t.ds_config),
        f"training.cpu_offload = true is FSDP's, but the engine is {engine_name(t.engine, t.ds_config)}; use --engine "
        "fsdp, or DeepSpeed with a file that offloads (--ds zero2_offload)",
    )
    refuse_unless(
        t.shard == "world" or fsdp_possible(t.engine, t.ds_config) or t.engine_discriminator == "fsdp",
        f"training.shard = {t.shard} is FSDP's, but the engine is {engine_name(t.engine, t.ds_config)}; use --engine "
        "fsdp, or --shard world",
    )
    engine_d = t.engine if t.engine_discriminator == "same" else t.engine_discriminator
    refuse_unless(
        t.ds_config_discriminator is None or engine_d in ("auto", "deepspeed"),
        f"--ds-discriminator {t.ds_config_discriminator} needs training.engine_discriminator = deepspeed, "
        f"but it is {engine_d}",
    )


def engine_name(engine: str, ds_config: str | None) -> str:
    """`auto` as far as the configuration alone tells."""
    return "deepspeed" if engine == "auto" and ds_config is not None else engine


def fsdp_possible(engine: str, ds_config: str | None) -> bool:
    """Whether the run can be FSDP's: `auto` depends on the number of ranks."""
    return engine_name(engine, ds_config) in ("auto", "fsdp")


def refuse_other_networks(saved: TrainConfig, now: TrainConfig, where: str) -> None:
    """A checkpoint is of the networks that its `model` fields make.

    Shapes alone don't tell: another number of heads, say, fits into the same tensors.

    Raises:
        UserError: names each field that differs.
    """
    changed = []
    for field in dataclasses.fields(ModelConfig):
        old, new = getattr(saved.model, field.name), getattr(now.model, field.name)
        alike = old == new or field.name in NOT_THE_NETWORK or (old in BATCH_NORMS and new in BATCH_NORMS)
        if not alike:
            changed.append(f"model.{field.name} = {new} (saved: {old})")
    refuse_unless(not changed, f"{where}: another architecture: {', '.join(changed)}; leave it as saved")


def check_size(size: int, multiple: int) -> None:
    """The pictures' side against the model's total stride."""
    refuse_unless(
        size % multiple == 0,
        f"data.image_size: pictures of {size} px, but the encoder needs a multiple of {multiple} px "
        f"(nearest: {max(multiple, round(size / multiple) * multiple)}; set data.image_size)",
    )
