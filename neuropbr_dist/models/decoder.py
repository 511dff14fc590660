"""U-Net decoder: fused latent and skips to the eight map channels before activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropbr_dist.models.encoder import conv_norm_act
from neuropbr_dist.models.norm import NormFactory, norm_factory

WIDTH = 64  # channels that reach the heads
HEADS = {"albedo": 3, "roughness": 1, "metallic": 1, "normal": 3}


class DecoderBlock(nn.Module):
    """Upsample 2x, convolve, concatenate the skip, convolve twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.up = nn.Sequential(*conv_norm_act(in_channels, out_channels, norm))
        self.conv = nn.Sequential(
            *conv_norm_act(skip_channels + out_channels, out_channels, norm),
            *conv_norm_act(out_channels, out_channels, norm),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x (B, C, h, w), skip (B, S, 2h, 2w) -> (B, out, 2h, 2w)"""
        x = self.up(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        return self.conv(torch.cat([skip, x], dim=1))


def super_resolution_head(norm: NormFactory) -> nn.Sequential:
    """2x pixel-shuffle head that a stride-2 encoder needs (Shi et al. 2016)."""
    return nn.Sequential(
        *conv_norm_act(WIDTH, WIDTH, norm),
        *conv_norm_act(WIDTH, 4 * WIDTH, norm),
        nn.PixelShuffle(2),
        *conv_norm_act(WIDTH, WIDTH // 2, norm),
        nn.Conv2d(WIDTH // 2, WIDTH, 1, bias=False),
    )


def map_heads() -> nn.Conv2d:
    """The four 1x1 heads as one convolution, 64 -> 8 rows in the order of `HEADS`."""
    heads = nn.Conv2d(WIDTH, sum(HEADS.values()), 1)
    # A flat surface is the neutral start: normals point out of it.
    assert heads.bias is not None
    with torch.no_grad():
        heads.bias[5:] = torch.tensor([0.0, 0.0, 1.0])
    return heads


class Decoder(nn.Module):
    """U-Net decoder with four heads.

    Args:
        in_channels: of the fused latent.
        skip_channels: of the encoder's skips, in the encoder's order.
        norm: norm layer kind.
        super_resolution: end in a 2x head (encoder stride 2).
    """

    def __init__(self, in_channels: int, skip_channels: list[int], norm: str, super_resolution: bool) -> None:
        super().__init__()
        make = norm_factory(norm)
        self.blocks = nn.ModuleList()
        for skip in reversed(skip_channels):
            out = skip if skip <= WIDTH else skip // 2
            self.blocks.append(DecoderBlock(in_channels, skip, out, make))
            in_channels = out
        self.project = nn.Conv2d(in_channels, WIDTH, 1) if in_channels != WIDTH else nn.Identity()
        self.super_resolution = super_resolution_head(make) if super_resolution else nn.Identity()
        self.heads = map_heads()

    def segments(self) -> dict[str, nn.Module]:
        found = {f"blocks.{i}": block for i, block in enumerate(self.blocks)}
        if not isinstance(self.super_resolution, nn.Identity):
            found["super_resolution"] = self.super_resolution
        return found

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """x (B, C, h, w) -> (B, 8, H, W), raw"""
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(x, skip)
        return self.heads(self.super_resolution(self.project(x)))
