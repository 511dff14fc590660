"""Named starting points, by the guide's names and with its highlights."""

from __future__ import annotations

from collections.abc import Callable

from neuropbr_dist.config.schema import TrainConfig


def default() -> TrainConfig:
    """ResNet-50, ViT depth 4, GAN from epoch 5: production training at 2048²."""
    return TrainConfig()


def quick_test() -> TrainConfig:
    """ResNet-18, ViT depth 2, 20 epochs: smoke tests."""
    cfg = TrainConfig()
    cfg.model.encoder_backbone = "resnet18"
    cfg.model.transformer_depth = 2
    cfg.model.transformer_num_heads = 16
    cfg.training.epochs = 20
    cfg.training.save_every_n_epochs = 1
    cfg.optimizer.scheduler_warmup_epochs = 2
    return cfg


def lightweight() -> TrainConfig:
    """ResNet-50 without a GAN: fast baseline."""
    cfg = TrainConfig()
    cfg.model.use_gan = False
    cfg.loss.w_gan = 0.0
    cfg.loss.w_ssim = 0.5
    cfg.loss.w_normal = 0.7
    return cfg


def high_quality() -> TrainConfig:
    """ResNet-101 at stride 2, ViT depth 6, heavier perceptual terms: highest fidelity."""
    cfg = TrainConfig()
    cfg.model.encoder_backbone = "resnet101"
    cfg.model.encoder_stride = 2
    cfg.model.transformer_depth = 6
    cfg.loss.w_ssim = 0.5
    cfg.loss.w_normal = 0.8
    cfg.loss.w_gan = 0.1
    cfg.loss.w_albedo = 1.2
    cfg.optimizer.g_lr = 1e-4
    cfg.optimizer.scheduler_warmup_epochs = 10
    cfg.training.epochs = 200
    cfg.training.gan_start_epoch = 10
    return cfg


def fast_iteration() -> TrainConfig:
    """ResNet-18 at stride 2, ViT depth 2, 50 epochs: rapid experiments."""
    cfg = TrainConfig()
    cfg.model.encoder_backbone = "resnet18"
    cfg.model.encoder_stride = 2
    cfg.model.transformer_depth = 2
    cfg.model.transformer_num_heads = 16
    cfg.training.epochs = 50
    cfg.training.val_every_n_epochs = 2
    cfg.training.save_every_n_epochs = 10
    return cfg


def normal_focused() -> TrainConfig:
    """ResNet-50 at stride 2 with normal-heavy weights."""
    cfg = TrainConfig()
    cfg.model.encoder_stride = 2
    cfg.loss.w_ssim = 0.2
    cfg.loss.w_normal = 1.5
    cfg.loss.w_gan = 0.08
    cfg.loss.w_albedo = cfg.loss.w_roughness = cfg.loss.w_metallic = 0.8
    cfg.loss.w_normal_map = 2.0
    cfg.optimizer.g_lr = 1.5e-4
    cfg.training.epochs = 150
    cfg.training.gan_start_epoch = 8
    return cfg


def demo() -> TrainConfig:
    """Small network on small built-in materials: minutes on two CPU cores."""
    cfg = TrainConfig()
    cfg.data.image_size = 64
    cfg.data.builtin_count = 160
    cfg.data.num_workers = 0
    cfg.model.encoder_type = "unet"
    cfg.model.encoder_channels = [32, 64, 128]
    cfg.model.encoder_pretrained = False
    cfg.model.transformer_dim = 128
    cfg.model.transformer_num_heads = 4
    cfg.model.transformer_depth = 2
    cfg.model.discriminator_n_layers = 3
    cfg.model.discriminator_ndf = 32
    cfg.optimizer.g_lr = 1e-3
    cfg.optimizer.scheduler_warmup_epochs = 1
    cfg.training.epochs = 10
    cfg.training.gan_start_epoch = 8
    cfg.training.batch_size = 4
    cfg.training.global_batch_size = 8
    cfg.training.val_every_n_epochs = 2
    cfg.training.save_every_n_epochs = 5
    cfg.training.log_images_every_n_epochs = 5
    cfg.training.checkpoint_dir = "./demo_run"
    return cfg


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    preset.__name__: preset
    for preset in (default, quick_test, lightweight, high_quality, fast_iteration, normal_focused, demo)
}
