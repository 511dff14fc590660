"""Named starting points: the guide's, by its names, and this project's own, by measurement.

What was measured stands in `benchmarks/results/2026-11-30-recipe-staged-h200.md`, the losses, changes and average of `recipe`
taken together, its stages beside 256 px alone (before `data.drop_views` left views alone, and before `data.other_relief`, whose
share is a guess from `2026-11-30-other-relief-h200.md`; higher shares of it and of `data.any_roughness`, with four times the
materials, were no better all in all: `2026-12-01-recipe-materials-h200.md`). No GAN has earned its place:
`2026-11-30-gan-256-h200.md` has ten that make finished weights sharper, and normals worse by their weight. So where there is one
it comes late and light, which cost held-out maps next to nothing and real normals 2 to 3 % there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from neuropbr_dist.config.schema import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    Stage,
    TrainConfig,
    TrainingConfig,
)

EMA_DECAY = 0.999


def measured_losses(w_gan: float) -> LossConfig:
    """Return the loss weights of `recipe`, with a GAN's or 0."""
    return LossConfig(w_gan=w_gan, w_render=0.5, w_ssim=1.0, w_roughness=1.5, w_normal_map=4.0)


def default() -> TrainConfig:
    """ResNet-50, ViT depth 4 at the set's own side (2048²): the guide's network with what `recipe` was measured with, and a late and light GAN."""
    return TrainConfig(
        # Not its `camera_jitter`: a share of the side that is under a pixel at 256 px would be six at 2048. Nor what only
        # rendered views can have: a set with stored ones refuses it.
        data=DataConfig(augment_flips=True, augment_rotations=True, drop_views=0.2),
        loss=measured_losses(w_gan=0.01),
        training=TrainingConfig(ema_decay=EMA_DECAY, gan_start_epoch=60),
    )


def guide() -> TrainConfig:
    """The training guide's own values: ResNet-50, ViT depth 4, GAN from epoch 5."""
    return TrainConfig()


def quick_test() -> TrainConfig:
    """ResNet-18, ViT depth 2, 20 epochs: smoke tests."""
    return TrainConfig(
        model=ModelConfig(encoder_backbone="resnet18", transformer_depth=2, transformer_num_heads=16),
        optimizer=OptimizerConfig(scheduler_warmup_epochs=2),
        training=TrainingConfig(epochs=20, save_every_n_epochs=1),
    )


def lightweight() -> TrainConfig:
    """ResNet-50 without a GAN: fast baseline."""
    return TrainConfig(
        model=ModelConfig(use_gan=False),
        loss=LossConfig(w_gan=0.0, w_ssim=0.5, w_normal=0.7),
    )


def high_quality() -> TrainConfig:
    """ResNet-101 at stride 2, ViT depth 6, heavier perceptual terms: highest fidelity."""
    return TrainConfig(
        model=ModelConfig(encoder_backbone="resnet101", encoder_stride=2, transformer_depth=6),
        loss=LossConfig(w_ssim=0.5, w_normal=0.8, w_gan=0.1, w_albedo=1.2),
        optimizer=OptimizerConfig(g_lr=1e-4, scheduler_warmup_epochs=10),
        training=TrainingConfig(epochs=200, gan_start_epoch=10),
    )


def fast_iteration() -> TrainConfig:
    """ResNet-18 at stride 2, ViT depth 2, 50 epochs: rapid experiments."""
    return TrainConfig(
        model=ModelConfig(
            encoder_backbone="resnet18", encoder_stride=2, transformer_depth=2, transformer_num_heads=16
        ),
        training=TrainingConfig(epochs=50, val_every_n_epochs=2, save_every_n_epochs=10),
    )


def normal_focused() -> TrainConfig:
    """ResNet-50 at stride 2 with normal-heavy weights."""
    return TrainConfig(
        model=ModelConfig(encoder_stride=2),
        loss=LossConfig(
            w_ssim=0.2,
            w_normal=1.5,
            w_gan=0.08,
            w_albedo=0.8,
            w_roughness=0.8,
            w_metallic=0.8,
            w_normal_map=2.0,
        ),
        optimizer=OptimizerConfig(g_lr=1.5e-4),
        training=TrainingConfig(epochs=150, gan_start_epoch=8),
    )


def recipe() -> TrainConfig:
    """ResNet-18 at 128, then 256 px on rectified views, rendered anew at each step, rendering loss, no GAN: maps of real materials."""
    return TrainConfig(
        data=DataConfig(
            render="online",
            builtin_count=4160,
            val_ratio=0.0154,  # 64 of them
            augment_flips=True,
            augment_rotations=True,
            drop_views=0.2,
            camera_jitter=0.003,
            mixtures=0.3,
            tint=0.2,
            roughness_shift=0.15,
            # Half of all samples: roughness of the four real ones came a fifth closer, that of held-out ones a quarter less close.
            any_roughness=0.65,
            # Normals of real materials came a seventh closer, those of held-out ones a twentieth less close.
            other_relief=0.4,
            crop=0.3,
            num_workers=8,  # a scene takes 5 ms of a core to draw
        ),
        model=ModelConfig(
            align="plane",
            encoder_backbone="resnet18",
            encoder_pretrained=False,
            transformer_dim=512,
            transformer_num_heads=8,
            transformer_depth=2,
            use_gan=False,
        ),
        loss=measured_losses(w_gan=0.0),
        optimizer=OptimizerConfig(g_lr=4e-4, scheduler_warmup_epochs=4, scheduler_min_lr=2e-6),
        training=TrainingConfig(
            ema_decay=EMA_DECAY,
            val_every_n_epochs=20,
            # A third of the time is the small pictures', more than half of the samples; the rate is at two fifths of its peak then.
            stages=[
                Stage(until_epoch=130, image_size=128, global_batch_size=16, batch_size=16),
                Stage(until_epoch=230, image_size=256, global_batch_size=16, batch_size=16, lr_scale=2.0),
            ],
        ),
    )


def recipe_large() -> TrainConfig:
    """`recipe` on the network of `default`, 256 px to 2048 in four stages: a hundred GPU-hours, reckoned and not run."""
    cfg = recipe()
    return replace(
        cfg,
        # Half as many materials: kept at 2048 px, they take 69 GB, and twelve hours of a core to make.
        data=replace(
            cfg.data,
            builtin_count=2112,
            val_ratio=0.0303,
            renders_per_epoch=32,
            camera_jitter=0.001,
        ),
        model=ModelConfig(align="plane"),
        loss=measured_losses(w_gan=0.01),
        # Nine samples of ten are seen small: a rate that fell to nothing by samples would leave the large ones none.
        optimizer=OptimizerConfig(scheduler_warmup_epochs=2, scheduler_min_lr=2e-5),
        training=TrainingConfig(
            ema_decay=EMA_DECAY,
            gan_start_epoch=482,
            val_every_n_epochs=10,
            save_every_n_epochs=50,
            save_latest_every_n_epochs=10,
            save_every_n_minutes=20,
            # The batches are those of eight GPUs that each take what fills them.
            stages=[
                Stage(until_epoch=380, image_size=256, global_batch_size=256, batch_size=32),
                Stage(until_epoch=481, image_size=512, global_batch_size=128, batch_size=16, lr_scale=1.5),
                Stage(until_epoch=492, image_size=1024, global_batch_size=64, batch_size=4, lr_scale=2.0),
                Stage(until_epoch=493, image_size=2048, global_batch_size=64, batch_size=1),
            ],
        ),
    )


def demo() -> TrainConfig:
    """Small network on small built-in materials: minutes on two CPU cores."""
    return TrainConfig(
        data=DataConfig(image_size=64, builtin_count=160, num_workers=0),
        model=ModelConfig(
            encoder_type="unet",
            encoder_channels=[32, 64, 128],
            encoder_pretrained=False,
            transformer_dim=128,
            transformer_num_heads=4,
            transformer_depth=2,
            discriminator_n_layers=3,
            discriminator_ndf=32,
        ),
        optimizer=OptimizerConfig(g_lr=1e-3, scheduler_warmup_epochs=1),
        training=TrainingConfig(
            epochs=10,
            gan_start_epoch=8,
            batch_size=4,
            global_batch_size=8,
            val_every_n_epochs=2,
            save_every_n_epochs=5,
            log_images_every_n_epochs=5,
            checkpoint_dir="./demo_run",
        ),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    preset.__name__: preset
    for preset in (
        default,
        guide,
        quick_test,
        lightweight,
        high_quality,
        fast_iteration,
        normal_focused,
        recipe,
        recipe_large,
        demo,
    )
}
