"""Per-view encoders: a picture to a latent and skip features at falling resolution."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from neuropbr_dist.models.norm import NormFactory, norm_factory

# The torchvision weights upstream starts from, as timm names them.
PRETRAINED_TAGS = {
    "resnet18": "tv_in1k",
    "resnet34": "tv_in1k",
    "resnet50": "tv2_in1k",
    "resnet101": "tv2_in1k",
    "resnet152": "tv2_in1k",
}


class Stage(nn.Sequential):
    """One resolution of a ResNet: residual blocks, most of them alike."""

    def compile_units(self) -> list[nn.Module]:
        """The blocks: like ones share a graph, where one graph for the stage would repeat it."""
        return list(self)


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
        name = f"{backbone}.{PRETRAINED_TAGS[backbone]}" if pretrained else backbone
        make = norm_factory(norm)
        # timm hands device and dtype to its norm layers; ours follow the default device.
        net: Any = timm.create_model(name, pretrained=pretrained, norm_layer=lambda c, **_: make(c))
        net.conv1.stride = (stride, stride)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act1)
        self.layer1 = Stage(net.maxpool, *net.layer1)
        self.layer2 = Stage(*net.layer2)
        self.layer3 = Stage(*net.layer3)
        self.layer4 = Stage(*net.layer4)
        widths = [info["num_chs"] for info in net.feature_info]
        self.skip_channels, self.out_channels = widths[:4], widths[4]
        self.reduction = 16 * stride

    def segments(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in ("stem", "layer1", "layer2", "layer3", "layer4")}

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x: (N, 3, H, W) -> latent (N, C, H/r, W/r), skips of falling resolution."""
        skips = []
        for stage in (self.stem, self.layer1, self.layer2, self.layer3):
            x = stage(x)
            skips.append(x)
        return self.layer4(x), skips


def conv_norm_act(in_channels: int, out_channels: int, norm: NormFactory) -> list[nn.Module]:
    """3x3 convolution, norm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [conv, norm(out_channels), nn.ReLU(inplace=True)]


class UNetEncoder(nn.Module):
    """Plain double-convolution encoder: level i works at 1/2^i of the input side."""

    def __init__(self, channels: list[int], norm: str) -> None:
        super().__init__()
        make = norm_factory(norm)
        self.levels = nn.ModuleList()
        previous = 3
        for i, width in enumerate(channels):
            pool = [nn.MaxPool2d(2)] if i else []
            convs = conv_norm_act(previous, width, make) + conv_norm_act(width, width, make)
            self.levels.append(nn.Sequential(*pool, *convs))
            previous = width
        self.skip_channels, self.out_channels = channels[:-1], channels[-1]
        self.reduction = 2 ** (len(channels) - 1)

    def segments(self) -> dict[str, nn.Module]:
        return {f"levels.{i}": level for i, level in enumerate(self.levels)}

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x: (N, 3, H, W) -> latent (N, C, H/r, W/r), skips of falling resolution."""
        skips = []
        for level in self.levels:
            x = level(x)
            skips.append(x)
        return skips.pop(), skips
