"""U-Net decoder: fused latent and skips to the eight map channels before activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neuropbr_dist.models.encoder import conv_norm_act
from neuropbr_dist.models.norm import NormFactory, norm_factory

VIEWS = 3
WIDTH = 64  # channels that reach the heads
HEADS = {"albedo": 3, "roughness": 1, "metallic": 1, "normal": 3}


def upsample_2x(x: Tensor) -> Tensor:
    """Bilinear 2x upsampling, (B, C, h, w) -> (B, C, 2h, 2w); `F.interpolate`, align_corners False.

    As its fixed stencil, 3/4 of a pixel and 1/4 of its neighbour: the compiled backward
    of `F.interpolate` scatters with atomics (measured: 70 ms of a step).
    """
    for dim in (2, 3):
        n = x.shape[dim]
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, n - 1)], dim)
        after = torch.cat([x.narrow(dim, 1, n - 1), x.narrow(dim, n - 1, 1)], dim)
        x = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], dim + 1).flatten(dim, dim + 1)
    return x


def mean_over_views(x: Tensor) -> Tensor:
    """(B * 3, C, H, W), views of a sample adjacent -> (B, C, H, W)."""
    return MeanOverViews.apply(x) if x.requires_grad else mean_of_slices(x)


def mean_of_slices(x: Tensor) -> Tensor:
    """`mean` over a short outer dimension is a slow reduction in bf16 (measured: 59 ms of a step)."""
    first, second, third = x.unflatten(0, (-1, VIEWS)).unbind(1)
    return (first + second + third) * (1.0 / VIEWS)


class MeanOverViews(torch.autograd.Function):
    """`mean_over_views` with an expanded gradient.

    Autograd's own, a stack of the slices' gradients, was added to the encoder's gradient in
    another layout (a step took 48 ms less with this and the decoder's blocks in two parts).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return mean_of_slices(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = (grad * (1.0 / VIEWS)).contiguous(memory_format=torch.channels_last)
        if len(grad) == 1:
            return grad.expand(VIEWS, -1, -1, -1)
        return grad.repeat_interleave(VIEWS, 0)


class Up(nn.Sequential):
    """Upsample 2x, then convolution, norm, ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, out, 2h, 2w)"""
        return super().forward(upsample_2x(x))


class Join(nn.Sequential):
    """Concatenate the skip, convolve twice."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        """x (B, out, H, W), skip (B, S, H, W) -> (B, out, H, W)"""
        return super().forward(torch.cat([skip, x], dim=1))


class DecoderBlock(nn.Module):
    """Upsample 2x, convolve, concatenate the skip, convolve twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.up = Up(*conv_norm_act(in_channels, out_channels, norm))
        self.conv = Join(
            *conv_norm_act(skip_channels + out_channels, out_channels, norm),
            *conv_norm_act(out_channels, out_channels, norm),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x (B, C, h, w), skip of all views (B * views, S, 2h, 2w) -> (B, out, 2h, 2w)"""
        return self.conv(self.up(x), mean_over_views(skip))


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
        # In two parts: at full resolution one block's activations are 5 GiB at 2048 px.
        found: dict[str, nn.Module] = {}
        for i, block in enumerate(self.blocks):
            found |= {f"blocks.{i}.up": block.up, f"blocks.{i}.conv": block.conv}  # type: ignore[dict-item]
        if not isinstance(self.super_resolution, nn.Identity):
            found["super_resolution"] = self.super_resolution
        return found

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """x (B, C, h, w), skips (B * views, ...) -> (B, 8, H, W), raw"""
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(x, skip)
        return self.heads(self.super_resolution(self.project(x)))
