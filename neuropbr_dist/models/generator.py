"""The generator: three views of a material in, its four PBR maps out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuropbr_dist.config import ModelConfig, settled
from neuropbr_dist.kernels import COPIES, VIEWS, activate_maps
from neuropbr_dist.materials.rectify import EXTRA_CHANNELS
from neuropbr_dist.models.conv import WidenedConv2d
from neuropbr_dist.models.decoder import Decoder
from neuropbr_dist.models.encoder import RGB, ResNetEncoder, UNetEncoder
from neuropbr_dist.models.fusion import ConcatFusion, CrossViewFusion


def encoder_norm(config: ModelConfig) -> str:
    """Return `model.encoder_norm` with `auto` and `freeze_bn` resolved."""
    kind = config.encoder_norm
    if kind == "auto":
        pretrained = config.encoder_type == "resnet" and config.encoder_pretrained
        kind = "frozen_batch" if pretrained else "group"
    if config.freeze_bn and kind in ("batch", "sync_batch"):
        kind = "frozen_batch"
    return kind


def view_channels(config: ModelConfig) -> int:
    """Return the number of channels of each view that the generator takes."""
    return RGB + (EXTRA_CHANNELS if config.align == "plane" else 0)


def size_multiple(config: ModelConfig) -> int:
    """Return what a picture's side must be a multiple of, in pixels."""
    if config.encoder_type == "resnet":
        return 16 * config.encoder_stride
    return 2 ** (len(config.encoder_channels) - 1)


def build_encoder(config: ModelConfig) -> ResNetEncoder | UNetEncoder:
    """Return the encoder of `model.encoder_type`, shared by the views."""
    config = settled(config)
    norm, channels, merge = encoder_norm(config), view_channels(config), config.skip_merge
    if config.encoder_type == "unet":
        return UNetEncoder(config.encoder_channels, norm, channels, merge)
    return ResNetEncoder(
        config.encoder_backbone, config.encoder_stride, norm, channels=channels, skip_merge=merge
    )


class Generator(nn.Module):
    """Shared encoder, cross-view fusion, U-Net decoder.

    Structure and parameter count are those of upstream NeuroPBR's
    `MultiViewPBRGenerator`; the views go through the encoder as one batch.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        config = settled(config)
        dim = config.transformer_dim
        self.encoder = build_encoder(config)
        width = self.encoder.out_channels
        self.latent_proj = nn.Conv2d(width, dim, 1, bias=False) if width != dim else nn.Identity()
        if config.use_transformer:
            self.fusion: nn.Module = CrossViewFusion(
                dim,
                VIEWS,
                config.transformer_num_heads,
                config.transformer_depth,
                config.transformer_mlp_ratio,
                config.transformer_attn_drop,
                config.transformer_proj_drop,
                config.transformer_drop_path_rate,
                config.token_embedding,
            )
        else:
            self.fusion = ConcatFusion(dim, VIEWS)
        two_x = config.encoder_type == "resnet" and config.encoder_stride == 2
        copies = COPIES[config.skip_merge]  # type: ignore[index]
        self.decoder = Decoder(dim, self.encoder.skip_channels, config.norm, two_x, config.normals, copies)
        if config.freeze_backbone and config.encoder_type == "resnet":
            freeze_backbone(self.encoder)
        if config.freeze_bn:
            freeze_norms(self.encoder)

    def segments(self) -> dict[str, nn.Module]:
        """Return the modules that are recomputed, compiled and sharded one by one, in forward order, by name."""
        return {
            f"{part}.{name}": module
            for part in ("encoder", "fusion", "decoder")
            for name, module in getattr(self, part).segments().items()
        }

    def forward(self, views: Tensor) -> Tensor:
        """
        Args:
            views: (B, 3, 3, H, W) normalised RGB, or (B, 3, 7, H, W) rectified with `align = plane`
                (`materials.rectify`); H and W multiples of `size_multiple`.

        Returns:
            (B, 8, H, W) float32: albedo RGB, roughness, metallic in [0, 1], unit normal XYZ.
        """
        x = views.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        latent, skips = self.encoder(x)
        fused = self.fusion(self.latent_proj(latent))
        raw = self.decoder(fused, skips)
        return activate_maps(raw)


def freeze_backbone(encoder: nn.Module) -> None:
    """Freeze all weights but those of the input channels that no pretrained network knows."""
    encoder.requires_grad_(False)
    for m in encoder.modules():
        if isinstance(m, WidenedConv2d):
            m.extra.requires_grad_(True)


def freeze_norms(module: nn.Module) -> None:
    """Freeze the scale and shift of every norm layer."""
    for m in module.modules():
        if isinstance(m, nn.GroupNorm | nn.BatchNorm2d):
            m.requires_grad_(False)
