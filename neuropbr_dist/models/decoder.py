"""U-Net decoder: fused latent and skips to the eight map channels before activation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from neuropbr_dist.kernels import upsample_2x
from neuropbr_dist.models.conv import (
    ConvChain,
    FusedConv2d,
    JoinConv2d,
    conv_layers,
    conv_norm_act,
    run_layers,
)
from neuropbr_dist.models.norm import NormFactory, norm_factory
from neuropbr_dist.strip import Strip

WIDTH = 64  # channels that reach the heads
HEADS = {"albedo": 3, "roughness": 1, "metallic": 1, "normal": 3}


class Up(ConvChain):
    """Upsample 2x, then convolution, norm, ReLU."""

    strip: Strip | None = None
    """Way to the other strips where the input is a strip of a picture's rows, as a `FusedConv2d`'s."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, out, 2h, 2w)"""
        return super().forward(upsample_2x(x, self.strip))


class Join(ConvChain):
    """Convolve the skip's and the input's channels as one, then convolve again."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        """x (B, out, H, W), skip (B, S, H, W) -> (B, out, H, W)"""
        join, norm, act, *rest = self
        return run_layers(rest, conv_norm_act(partial(join, skip), norm, act, x))


class DecoderBlock(nn.Module):
    """Upsample 2x, convolve, concatenate the skip, convolve twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.up = Up(*conv_layers(in_channels, out_channels, norm))
        join = JoinConv2d(skip_channels + out_channels, out_channels, 3, padding=1, bias=False)
        first = [join, norm(out_channels), nn.ReLU(inplace=True)]
        self.conv = Join(*first, *conv_layers(out_channels, out_channels, norm))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x (B, C, h, w), skip (B, S, 2h, 2w), merged over the views -> (B, out, 2h, 2w)"""
        return self.conv(self.up(x), skip)


def super_resolution_head(norm: NormFactory) -> ConvChain:
    """Return the 2x pixel-shuffle head that a stride-2 encoder needs (Shi et al. 2016)."""
    return ConvChain(
        *conv_layers(WIDTH, WIDTH, norm),
        *conv_layers(WIDTH, 4 * WIDTH, norm),
        nn.PixelShuffle(2),
        *conv_layers(WIDTH, WIDTH // 2, norm),
        nn.Conv2d(WIDTH // 2, WIDTH, 1, bias=False),
    )


def map_heads(normals: str) -> FusedConv2d:
    """Return the four 1x1 heads as one convolution, 64 -> 8 rows in the order of `HEADS`; 7 with normals as slopes."""
    flat = [0.0, 0.0] if normals == "slopes" else [0.0, 0.0, 1.0]
    heads = FusedConv2d(WIDTH, 5 + len(flat), 1)
    # A flat surface is the neutral start: normals point out of it.
    assert heads.bias is not None
    with torch.no_grad():
        heads.bias[5:] = torch.tensor(flat)
    return heads


class Decoder(nn.Module):
    """U-Net decoder with four heads.

    Args:
        in_channels: of the fused latent.
        skip_channels: of the encoder's skips, in the encoder's order.
        norm: norm layer kind.
        super_resolution: end in a 2x head (encoder stride 2).
        normals: `free` or `slopes`, see `kernels.activate_maps`.
        copies: `skip_channels` for each channel that a block is wide.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: list[int],
        norm: str,
        super_resolution: bool,
        normals: str = "free",
        copies: int = 1,
    ) -> None:
        super().__init__()
        make = norm_factory(norm)
        self.blocks = nn.ModuleList()
        for skip in reversed(skip_channels):
            width = skip // copies
            out = width if width <= WIDTH else width // 2
            self.blocks.append(DecoderBlock(in_channels, skip, out, make))
            in_channels = out
        self.project = FusedConv2d(in_channels, WIDTH, 1) if in_channels != WIDTH else nn.Identity()
        self.super_resolution = super_resolution_head(make) if super_resolution else nn.Identity()
        self.heads = map_heads(normals)

    def segments(self) -> dict[str, nn.Module]:
        # In two parts: at full resolution one block's activations are 5 GiB at 2048 px.
        found: dict[str, nn.Module] = {}
        for i, block in enumerate(self.blocks):
            found |= {f"blocks.{i}.up": block.up, f"blocks.{i}.conv": block.conv}  # type: ignore[dict-item]
        if not isinstance(self.super_resolution, nn.Identity):
            found["super_resolution"] = self.super_resolution
        return found

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """x (B, C, h, w), skips (B, ...) in the encoder's order -> (B, 8 or 7, H, W), raw"""
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(x, skip)
        return self.heads(self.super_resolution(self.project(x)))
