"""Per-view encoders: pictures to latents, and skip features at falling resolution averaged over the views."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from neuropbr_dist.kernels import max_pool_and_mean, pass_and_mean
from neuropbr_dist.models.conv import Conv2d, ConvChain, Kernels, conv_layers, conv_norm_act
from neuropbr_dist.models.norm import FrozenBatchNorm2d, norm_factory

# The torchvision weights upstream starts from, as timm names them.
PRETRAINED_TAGS = {
    "resnet18": "tv_in1k",
    "resnet34": "tv_in1k",
    "resnet50": "tv2_in1k",
    "resnet101": "tv2_in1k",
    "resnet152": "tv2_in1k",
}


class ResidualBlock(Kernels):
    """A basic or bottleneck block of timm's, with its parameters and their names (He et al. 2016)."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.depth = 3 if hasattr(block, "conv3") else 2
        for i in range(1, self.depth + 1):
            setattr(self, f"conv{i}", Conv2d.of(getattr(block, f"conv{i}")))
            setattr(self, f"bn{i}", getattr(block, f"bn{i}"))
            setattr(self, f"act{i}", getattr(block, f"act{i}"))
        self.downsample = block.downsample
        if self.downsample is not None:
            self.downsample[0] = Conv2d.of(self.downsample[0])

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
        """The input or its projection, and a shift (O,) that is left for the last layer to add in its pass."""
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
        """The blocks: like ones share a graph, where one graph for the stage would repeat it."""
        return [block for block in self if not isinstance(block, nn.Identity)]


class ResNetEncoder(nn.Module):
    """timm ResNet cut into stem and four stages.

    Args:
        backbone: resnet18 / 34 / 50 / 101 / 152.
        stride: of the first convolution; 1 keeps full resolution in the stem.
        norm: norm layer kind for the backbone.
        pretrained: load ImageNet weights through timm; the caller has made
            sure that they can be had.

    `skip_channels` are those of (stem, layer1, layer2, layer3), at 1/s, 1/2s,
    1/4s, 1/8s of the input side for s = `stride`; the latent is at 1/16s.
    """

    def __init__(self, backbone: str, stride: int, norm: str, pretrained: bool = False) -> None:
        super().__init__()
        import timm  # seconds, which a run without a backbone needn't wait for

        name = f"{backbone}.{PRETRAINED_TAGS[backbone]}" if pretrained else backbone
        make = norm_factory(norm)
        # timm hands device and dtype to its norm layers; ours follow the default device.
        net: Any = timm.create_model(name, pretrained=pretrained, norm_layer=lambda c, **_: make(c))
        net.conv1.stride = (stride, stride)
        self.stem = ConvChain(Conv2d.of(net.conv1), net.bn1, net.act1)
        # The first element stands for the max pooling, which the forward pass takes with the skip.
        self.layer1 = Stage(nn.Identity(), *map(ResidualBlock, net.layer1))
        self.layer2 = Stage(*map(ResidualBlock, net.layer2))
        self.layer3 = Stage(*map(ResidualBlock, net.layer3))
        self.layer4 = Stage(*map(ResidualBlock, net.layer4))
        widths = [info["num_chs"] for info in net.feature_info]
        self.skip_channels, self.out_channels = widths[:4], widths[4]
        self.reduction = 16 * stride

    def segments(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in ("stem", "layer1", "layer2", "layer3", "layer4")}

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x: (B * views, 3, H, W) -> latent (B * views, C, H/r, W/r), skips (B, ...) of falling resolution."""
        x, skip = max_pool_and_mean(self.stem(x))
        skips = [skip]
        for stage in (self.layer1, self.layer2, self.layer3):
            x, skip = pass_and_mean(stage(x))
            skips.append(skip)
        return self.layer4(x), skips


class UNetEncoder(nn.Module):
    """Plain double-convolution encoder: level i works at 1/2^i of the input side."""

    def __init__(self, channels: list[int], norm: str) -> None:
        super().__init__()
        make = norm_factory(norm)
        self.levels = nn.ModuleList()
        previous = 3
        for i, width in enumerate(channels):
            pool = [nn.MaxPool2d(2)] if i else []
            convs = conv_layers(previous, width, make) + conv_layers(width, width, make)
            self.levels.append(ConvChain(*pool, *convs))
            previous = width
        self.skip_channels, self.out_channels = channels[:-1], channels[-1]
        self.reduction = 2 ** (len(channels) - 1)

    def segments(self) -> dict[str, nn.Module]:
        return {f"levels.{i}": level for i, level in enumerate(self.levels)}

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x: (B * views, 3, H, W) -> latent (B * views, C, H/r, W/r), skips (B, ...) of falling resolution."""
        *levels, last = self.levels
        skips = []
        for level in levels:
            x, skip = pass_and_mean(level(x))
            skips.append(skip)
        return last(x), skips
