"""Per-view encoders: pictures to latents, and skip features at falling resolution, merged over the views."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from neuropbr_dist.kernels import COPIES, max_pool, max_pool_and_mean, pass_and_merge
from neuropbr_dist.models.conv import ConvChain, FusedConv2d, Kernels, conv_layers, conv_norm_act, input_conv
from neuropbr_dist.models.norm import FrozenBatchNorm2d, norm_factory
from neuropbr_dist.strip import Strip

# The torchvision weights upstream starts from, as timm names them.
PRETRAINED_TAGS = {
    "resnet18": "tv_in1k",
    "resnet34": "tv_in1k",
    "resnet50": "tv2_in1k",
    "resnet101": "tv2_in1k",
    "resnet152": "tv2_in1k",
}


RGB = 3  # channels of a picture; those after them are a mask, 1 where the view shows the place, and more


def mask_of(x: Tensor) -> Tensor | None:
    """Return the mask of (N, C, H, W) as (N, 1, H, W), or None where pictures come alone."""
    return x[:, RGB : RGB + 1] if x.shape[1] > RGB else None


def merge(x: Tensor, mask: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    """Do what `pass_and_merge` does with the mask at the features' resolution: the share of a place that
    the view shows."""
    weight = None if mask is None else F.interpolate(mask, size=x.shape[2:], mode="area")
    return pass_and_merge(x, weight, kind)  # type: ignore[arg-type]


def of_views_there(latent: Tensor, mask: Tensor | None, strip: Strip | None) -> Tensor:
    """Return latents (N, C, h, w) with zeros for views that show nothing.

    So nothing of a missing view counts, and no gradient goes back through it: its features are constants, which group norms
    divide by next to nothing, there and back.

    Args:
        mask: (N, 1, H, W) of 0 and 1; None: pictures come alone.
        strip: where both are a strip of rows of larger ones.
    """
    if mask is None:
        return latent
    there = mask.detach().amax((2, 3), keepdim=True)
    if strip is not None:
        there = strip.gathered(there).amax(0)
    return latent * there.to(latent.dtype)


class ResidualBlock(Kernels):
    """A basic or bottleneck block of timm's, with its parameters and their names (He et al. 2016)."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.depth = 3 if hasattr(block, "conv3") else 2
        for i in range(1, self.depth + 1):
            setattr(self, f"conv{i}", FusedConv2d.of(getattr(block, f"conv{i}")))
            setattr(self, f"bn{i}", getattr(block, f"bn{i}"))
            setattr(self, f"act{i}", getattr(block, f"act{i}"))
        self.downsample = block.downsample
        if self.downsample is not None:
            self.downsample[0] = FusedConv2d.of(self.downsample[0])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H / stride, W / stride)"""
        y = x
        for i in range(1, self.depth):
            y = conv_norm_act(*self.layer(i), y)
        residual, shift = self.shortcut(x)
        return conv_norm_act(*self.layer(self.depth), y, residual, shift)

    def layer(self, i: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        return getattr(self, f"conv{i}"), getattr(self, f"bn{i}"), getattr(self, f"act{i}")

    def shortcut(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the input or its projection, and a shift (O,) that is left for the last layer to add in its pass."""
        if self.downsample is None:
            return x, None
        conv, norm = self.downsample
        if isinstance(norm, FrozenBatchNorm2d):
            scale, shift = norm(None)
            return conv(x, scale), shift
        return norm(conv(x)), None


class Stage(nn.Sequential):
    """One resolution of a ResNet: residual blocks, most of them alike."""

    def compile_units(self) -> list[nn.Module]:
        """Return the blocks: like ones share a graph, where one graph for the stage would repeat it."""
        return [block for block in self if not isinstance(block, nn.Identity)]


class ResNetEncoder(nn.Module):
    """timm ResNet cut into stem and four stages.

    Args:
        backbone: resnet18 / 34 / 50 / 101 / 152.
        stride: of the first convolution; 1 keeps full resolution in the stem.
        norm: norm layer kind for the backbone.
        pretrained: load ImageNet weights through timm; the caller has made
            sure that they can be had.
        channels: of the input: RGB, and what rectification adds.
        skip_merge: see `kernels.pass_and_merge`.

    `skip_channels` are those of (stem, layer1, layer2, layer3), at 1/s, 1/2s,
    1/4s, 1/8s of the input side for s = `stride`; the latent is at 1/16s.
    """

    strip: Strip | None = None
    """Way to the other strips where the input is a strip of a picture's rows, as a `FusedConv2d`'s."""

    def __init__(
        self,
        backbone: str,
        stride: int,
        norm: str,
        pretrained: bool = False,
        channels: int = RGB,
        skip_merge: str = "mean",
    ) -> None:
        super().__init__()
        import timm  # seconds, which a run without a backbone needn't wait for

        name = f"{backbone}.{PRETRAINED_TAGS[backbone]}" if pretrained else backbone
        make = norm_factory(norm)
        # timm hands device and dtype to its norm layers; ours follow the default device.
        net: Any = timm.create_model(name, pretrained=pretrained, norm_layer=lambda c, **_: make(c))
        net.conv1.stride = (stride, stride)
        self.stem = ConvChain(input_conv(net.conv1, channels), net.bn1, net.act1)
        # The first element stands for the max pooling, which the forward pass takes with the skip.
        self.layer1 = Stage(nn.Identity(), *map(ResidualBlock, net.layer1))
        self.layer2 = Stage(*map(ResidualBlock, net.layer2))
        self.layer3 = Stage(*map(ResidualBlock, net.layer3))
        self.layer4 = Stage(*map(ResidualBlock, net.layer4))
        widths = [info["num_chs"] for info in net.feature_info]
        self.skip_merge = skip_merge
        self.skip_channels = [COPIES[skip_merge] * width for width in widths[:4]]  # type: ignore[index]
        self.out_channels = widths[4]
        self.reduction = 16 * stride

    def segments(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in ("stem", "layer1", "layer2", "layer3", "layer4")}

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x: (B * views, channels, H, W) -> latent (B * views, C, H/r, W/r), skips (B, ...) of falling resolution."""
        mask = mask_of(x)
        x, skip = self.pool(self.stem(x), mask)
        skips = [skip]
        for stage in (self.layer1, self.layer2, self.layer3):
            x, skip = merge(stage(x), mask, self.skip_merge)
            skips.append(skip)
        return of_views_there(self.layer4(x), mask, self.strip), skips

    def pool(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the max pooling before layer 1, and the stem's skip."""
        if mask is None and self.skip_merge == "mean" and self.strip is None:
            return max_pool_and_mean(x)
        x, skip = merge(x, mask, self.skip_merge)
        return max_pool(x, self.strip), skip


class UNetEncoder(nn.Module):
    """Plain double-convolution encoder: level i works at 1/2^i of the input side.

    Args:
        widths: channels of each level.
        norm: norm layer kind.
        channels, skip_merge: as a `ResNetEncoder`'s.
    """

    strip: Strip | None = None
    """As a `ResNetEncoder`'s."""

    def __init__(self, widths: list[int], norm: str, channels: int = RGB, skip_merge: str = "mean") -> None:
        super().__init__()
        make = norm_factory(norm)
        self.levels = nn.ModuleList()
        previous = RGB
        for i, width in enumerate(widths):
            pool = [nn.MaxPool2d(2)] if i else []
            convs = conv_layers(previous, width, make) + conv_layers(width, width, make)
            if i == 0:
                convs[0] = input_conv(convs[0], channels)  # type: ignore[arg-type]
            self.levels.append(ConvChain(*pool, *convs))
            previous = width
        self.skip_merge = skip_merge
        self.skip_channels = [COPIES[skip_merge] * width for width in widths[:-1]]  # type: ignore[index]
        self.out_channels = widths[-1]
        self.reduction = 2 ** (len(widths) - 1)

    def segments(self) -> dict[str, nn.Module]:
        return {f"levels.{i}": level for i, level in enumerate(self.levels)}

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x: (B * views, channels, H, W) -> latent (B * views, C, H/r, W/r), skips (B, ...) of falling resolution."""
        mask = mask_of(x)
        *levels, last = self.levels
        skips = []
        for level in levels:
            x, skip = merge(level(x), mask, self.skip_merge)
            skips.append(skip)
        return of_views_there(last(x), mask, self.strip), skips
