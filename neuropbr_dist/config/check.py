"""Combinations that can't train, refused at start with the field's name."""

from __future__ import annotations

import dataclasses

from neuropbr_dist.config.architecture import IMAGENET_STATS, UNSET_STATS, settled
from neuropbr_dist.config.deepspeed import anywhere
from neuropbr_dist.config.schema import DataConfig, ModelConfig, TrainConfig, TrainingConfig
from neuropbr_dist.config.stages import settle_stages
from neuropbr_dist.config.values import fit_fields
from neuropbr_dist.errors import UserError

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
    fit_fields(cfg, "configuration")
    fold_legacy(cfg)
    if cfg.transform.use_imagenet_stats is True:
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
    settle_stages(cfg)
    check(cfg)
    t = cfg.training
    t.ds_config, t.ds_config_discriminator = (
        None if given is None else anywhere(given) for given in (t.ds_config, t.ds_config_discriminator)
    )
    return cfg


def fold_legacy(cfg: TrainConfig) -> None:
    """Fold `use_dirty_renders` into `render_curriculum`; it is off afterwards, so that a later value wins."""
    data = cfg.data
    if not data.use_dirty_renders:
        return
    refuse_unless(
        data.render_curriculum != 1,
        "data.use_dirty_renders = true means data.render_curriculum = 2, but render_curriculum is 1",
    )
    data.render_curriculum, data.use_dirty_renders = 2, False


def check(cfg: TrainConfig) -> None:
    """Raise a `UserError` on the first combination that can't train; single values stand in their types."""
    check_data(cfg.data)
    check_mixtures(cfg)
    check_networks(cfg)
    check_engines(cfg.training)


def check_data(data: DataConfig) -> None:
    """Raise a UserError unless samples come from one place, and nothing is asked of rendered views where
    they are stored."""
    refuse_unless(
        (data.input_dir is None) == (data.output_dir is None),
        f"data.input_dir = {data.input_dir}, data.output_dir = {data.output_dir}; name both or neither",
    )
    refuse_unless(
        data.packed_dir is None or data.input_dir is None,
        f"data.packed_dir (--data) = {data.packed_dir} and data.input_dir = {data.input_dir}; name one or the other",
    )
    for field, flag in (("packed_dir", "--data"), ("input_dir", "--input-dir")):
        refuse_unless(
            data.materials_dir is None or getattr(data, field) is None,
            f"data.materials_dir (--materials) = {data.materials_dir} and data.{field} ({flag}) = "
            f"{getattr(data, field)}; name one or the other",
        )
    refuse_unless(
        data.materials_dir is None or data.render != "stored",
        f"data.render = stored, but data.materials_dir (--materials) = {data.materials_dir} has no views; leave one out",
    )
    check_rendering(data)


MATERIAL_CHANGES = ("crop", "tint", "roughness_shift", "any_roughness", "relief", "other_relief", "mixtures")
"""Fields of `data` that say how far a sample's material is changed; 0: not at all."""
ONLINE_ALONE = (
    "renders_per_epoch", "environments_dir", *(name for name in MATERIAL_CHANGES if name != "mixtures")
)  # fmt: skip
"""Fields of `data` that say how views are rendered."""


def check_rendering(data: DataConfig) -> None:
    """Raise a `UserError` for what only rendered views can have, or only stored ones.

    To be asked again once `data.render` is settled: `auto` may still mean either.
    """
    if data.render == "stored" or (data.render == "auto" and data.input_dir is not None):
        for field in ONLINE_ALONE:
            value = getattr(data, field)
            refuse_unless(
                not value,
                f"data.{field} = {value} is about rendered views, but these are stored; --materials DIR, or "
                "--set data.render=online, has them rendered",
            )
    if data.render == "online" or data.materials_dir is not None:
        refuse_unless(
            data.split_by == "material",
            f"data.split_by = {data.split_by}: rendered views are split by material; leave it out",
        )


def check_mixtures(cfg: TrainConfig) -> None:
    """Raise a `UserError` for mixtures of stored views that show other places than the maps.

    To be asked again once `data.render` and `model.align` are settled.
    """
    refuse_unless(
        cfg.data.mixtures == 0 or cfg.data.render != "stored" or cfg.model.align != "none",
        f"data.mixtures = {cfg.data.mixtures} of stored views needs model.align = plane; views that aren't rectified "
        "don't show what the maps' pixels are of",
    )


def check_networks(cfg: TrainConfig) -> None:
    """Raise a UserError unless the networks can be made, and the losses fit the discriminator."""
    m, loss = cfg.model, cfg.loss
    refuse_unless(
        m.transformer_dim % m.transformer_num_heads == 0,
        f"model.transformer_num_heads = {m.transformer_num_heads} does not divide "
        f"model.transformer_dim = {m.transformer_dim}",
    )
    refuse_unless(
        not m.freeze_backbone or m.encoder_type == "resnet",
        "model.freeze_backbone = true needs model.encoder_type = resnet; unet has no backbone to freeze",
    )
    refuse_unless(
        loss.gan_label_smoothing == 0 or loss.gan_loss_type == "bce",
        f"loss.gan_label_smoothing = {loss.gan_label_smoothing} needs loss.gan_loss_type = bce; "
        "hinge has no targets",
    )
    refuse_unless(
        not m.discriminator_use_sigmoid or loss.gan_loss_type == "bce",
        "model.discriminator_use_sigmoid = true needs loss.gan_loss_type = bce; hinge wants raw logits",
    )
    refuse_unless(
        m.use_gan or loss.w_feature_matching == 0,
        f"loss.w_feature_matching = {loss.w_feature_matching} needs model.use_gan = true; the features are the "
        "discriminator's",
    )
    check_judged(m)


def check_judged(m: ModelConfig) -> None:
    """Raise a `UserError` for a discriminator that is to see views which show other places than the maps.

    To be asked again once `model.align` is settled: `auto` may still mean either.
    """
    refuse_unless(
        not m.use_gan or m.discriminator_input == "maps" or m.align != "none",
        f"model.discriminator_input = {m.discriminator_input} needs model.align = plane; views that aren't rectified "
        "don't show what the maps' pixels are of",
    )


def check_engines(t: TrainingConfig) -> None:
    """Raise a UserError unless the engines fit the files and switches given for them."""
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
    """Return the engine, with `auto` resolved as far as the configuration alone tells."""
    return "deepspeed" if engine == "auto" and ds_config is not None else engine


def fsdp_possible(engine: str, ds_config: str | None) -> bool:
    """Return whether the run can be FSDP's: `auto` depends on the number of ranks."""
    return engine_name(engine, ds_config) in ("auto", "fsdp")


def check_same_networks(saved: TrainConfig, now: TrainConfig, where: str) -> None:
    """Raise a UserError unless `model` makes the networks that are in the checkpoint.

    Shapes alone don't tell: another number of heads, say, fits into the same tensors.

    Raises:
        UserError: names each field that differs.
    """
    changed, before, after = [], settled(saved.model), settled(now.model)
    for field in dataclasses.fields(ModelConfig):
        old, new = getattr(before, field.name), getattr(after, field.name)
        alike = old == new or field.name in NOT_THE_NETWORK or (old in BATCH_NORMS and new in BATCH_NORMS)
        if not alike:
            changed.append(f"model.{field.name} = {new} (saved: {old})")
    refuse_unless(not changed, f"{where}: another architecture: {', '.join(changed)}; leave it as saved")


def check_size(size: int, multiple: int) -> None:
    """Raise a UserError unless the pictures' side fits the model's total stride."""
    refuse_unless(
        size % multiple == 0,
        f"data.image_size: pictures of {size} px, but the encoder needs a multiple of {multiple} px "
        f"(nearest: {max(multiple, round(size / multiple) * multiple)}; set data.image_size)",
    )
