"""A small stand-in for upstream's networks: the same key names and shapes, computed by plain functions.

ResNet-18 encoder, two transformer blocks, decoder with four heads, PatchGAN; batch norm with
running statistics throughout. Written from the names and shapes of upstream's checkpoints.
"""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
DIM, HEADS, DEPTH, MLP = 32, 4, 2, 2
WIDTHS = (64, 128, 256, 512)
MAPS = (3, 1, 1, 3)
NDF, LAYERS = 4, 3


class Maker:
    """Random tensors under upstream's names."""

    def __init__(self) -> None:
        self.state: State = {}
        self.random = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def conv(self, name: str, out: int, inside: int, side: int, bias: bool = False) -> None:
        self.state[f"{name}.weight"] = self.normal(out, inside, side, side) / (inside * side**2) ** 0.5
        if bias:
            self.state[f"{name}.bias"] = self.normal(out) * 0.1

    def batch_norm(self, name: str, width: int) -> None:
        self.state[f"{name}.weight"] = 1 + self.normal(width) * 0.1
        self.state[f"{name}.bias"] = self.normal(width) * 0.1
        self.state[f"{name}.running_mean"] = self.normal(width) * 0.1
        self.state[f"{name}.running_var"] = 1 + self.normal(width).abs() * 0.1
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def linear(self, name: str, out: int, inside: int) -> None:
        self.state[f"{name}.weight"] = self.normal(out, inside) / inside**0.5
        self.state[f"{name}.bias"] = self.normal(out) * 0.1

    def layer_norm(self, name: str) -> None:
        self.state[f"{name}.weight"] = 1 + self.normal(DIM) * 0.1
        self.state[f"{name}.bias"] = self.normal(DIM) * 0.1


def generator_state(stride: int = 1, transformer: bool = True) -> State:
    make = Maker()
    make.conv("encoder.encoder_stack.0", 64, 3, 7)
    make.batch_norm("encoder.encoder_stack.1", 64)
    inside = 64
    for stage, width in enumerate(WIDTHS, 4):
        for block in range(2):
            name = f"encoder.encoder_stack.{stage}.{block}"
            for i, before in ((1, inside), (2, width)):
                make.conv(f"{name}.conv{i}", width, before, 3)
                make.batch_norm(f"{name}.bn{i}", width)
            if inside != width:
                make.conv(f"{name}.downsample.0", width, inside, 1)
                make.batch_norm(f"{name}.downsample.1", width)
            inside = width
    make.conv("latent_proj", DIM, 512, 1)
    if transformer:
        for block in range(DEPTH):
            name = f"fusion.blocks.{block}"
            make.layer_norm(f"{name}.norm1")
            make.linear(f"{name}.attn.qkv", 3 * DIM, DIM)
            make.state[f"{name}.attn.qkv.weight"] *= 3  # or all tokens are looked at alike
            make.linear(f"{name}.attn.proj", DIM, DIM)
            make.layer_norm(f"{name}.norm2")
            make.linear(f"{name}.mlp.fc1", MLP * DIM, DIM)
            make.linear(f"{name}.mlp.fc2", DIM, MLP * DIM)
        make.linear("fusion.fusion", DIM, 3 * DIM)
        make.layer_norm("fusion.norm")
    else:
        make.conv("fusion", DIM, 3 * DIM, 1, bias=True)
    inside = DIM
    for i, skip in enumerate((256, 128, 64, 64)):
        name, out = f"decoder.decoders.{i}", skip if skip <= 64 else skip // 2
        make.conv(f"{name}.upsample.1", out, inside, 3)
        make.batch_norm(f"{name}.upsample.2", out)
        for j, before in ((1, out + skip), (2, out)):
            make.conv(f"{name}.conv.conv{j}", out, before, 3)
            make.batch_norm(f"{name}.conv.bn{j}", out)
        inside = out
    if stride == 2:
        for place, (out, before) in {0: (64, 64), 3: (256, 64), 7: (32, 64)}.items():
            make.conv(f"decoder.sr_head.{place}", out, before, 3)
            make.batch_norm(f"decoder.sr_head.{place + 1}", out)
        make.conv("decoder.sr_head.10", 64, 32, 1)
    for i, out in enumerate(MAPS):
        make.conv(f"decoder.heads.{i}", out, 64, 1, bias=True)
    # As trained ones do, normals point outwards: the direction of a vector near zero is all rounding.
    make.state["decoder.heads.3.bias"] += torch.tensor([0.0, 0.0, 4.0])
    return make.state


def discriminator_state() -> State:
    make = Maker()
    make.conv("model.0", NDF, 8, 4, bias=True)
    width = NDF
    for i in range(1, LAYERS + 1):
        out = NDF * min(2**i, 8)
        make.conv(f"model.{3 * i - 1}", out, width, 4)
        make.batch_norm(f"model.{3 * i}", out)
        width = out
    make.conv(f"model.{3 * LAYERS + 2}", 1, width, 4, bias=True)
    return make.state


# -- what they compute -----------------------------------------------------------------------


def conv(s: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = s[f"{name}.weight"]
    return F.conv2d(x, weight, s.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def normed(s: State, name: str, x: Tensor) -> Tensor:
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-5)


def encode(s: State, x: Tensor, stride: int) -> tuple[Tensor, list[Tensor]]:
    stack = "encoder.encoder_stack"
    x = normed(s, f"{stack}.1", conv(s, f"{stack}.0", x, stride)).relu()
    skips = [x]
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in range(4, 8):
        for block in range(2):
            name = f"{stack}.{stage}.{block}"
            step = 2 if f"{name}.downsample.0.weight" in s else 1
            y = normed(s, f"{name}.bn1", conv(s, f"{name}.conv1", x, step)).relu()
            y = normed(s, f"{name}.bn2", conv(s, f"{name}.conv2", y))
            if step == 2:
                x = normed(s, f"{name}.downsample.1", conv(s, f"{name}.downsample.0", x, step))
            x = (x + y).relu()
        skips.append(x)
    return skips.pop(), skips


def attend(s: State, name: str, x: Tensor) -> Tensor:
    q, k, v = F.linear(x, s[f"{name}.qkv.weight"], s[f"{name}.qkv.bias"]).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    return F.linear(mixed, s[f"{name}.proj.weight"], s[f"{name}.proj.bias"])


def fuse(s: State, latents: list[Tensor]) -> Tensor:
    if "fusion.weight" in s:
        return conv(s, "fusion", torch.cat(latents, 1))

    def layer_norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (DIM,), s[f"{name}.weight"], s[f"{name}.bias"])

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])

    places = latents[0].shape[-2:]
    x = torch.cat([latent.flatten(2).transpose(1, 2) for latent in latents], 1)
    for block in range(DEPTH):
        name = f"fusion.blocks.{block}"
        x = x + attend(s, f"{name}.attn", layer_norm(f"{name}.norm1", x))
        x = x + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", layer_norm(f"{name}.norm2", x))))
    x = layer_norm("fusion.norm", linear("fusion.fusion", torch.cat(x.chunk(3, 1), -1)))
    return x.transpose(1, 2).unflatten(2, places)


def generate(s: State, views: Tensor) -> Tensor:
    """Normalised views (B, 3, 3, H, W) -> the four maps in upstream's ranges, side by side (B, 8, H, W)."""
    stride = 2 if "decoder.sr_head.0.weight" in s else 1
    encoded = [encode(s, view, stride) for view in views.unbind(1)]
    x = fuse(s, [conv(s, "latent_proj", latent) for latent, _ in encoded])
    for i in range(4):
        name = f"decoder.decoders.{i}"
        skip = sum(skips[3 - i] for _, skips in encoded) / 3
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = normed(s, f"{name}.upsample.2", conv(s, f"{name}.upsample.1", x)).relu()
        x = torch.cat([skip, x], 1)
        for j in (1, 2):
            x = normed(s, f"{name}.conv.bn{j}", conv(s, f"{name}.conv.conv{j}", x)).relu()
    if stride == 2:
        for place in (0, 3, 7):
            if place == 7:
                x = F.pixel_shuffle(x, 2)
            x = normed(s, f"decoder.sr_head.{place + 1}", conv(s, f"decoder.sr_head.{place}", x)).relu()
        x = conv(s, "decoder.sr_head.10", x)
    heads = [conv(s, f"decoder.heads.{i}", x) for i in range(4)]
    return torch.cat([*(head.sigmoid() for head in heads[:3]), F.normalize(heads[3], dim=1)], 1)


def judge(s: State, maps: Tensor) -> Tensor:
    def patch(name: str, x: Tensor, stride: int) -> Tensor:
        return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), stride, 1)

    x = F.leaky_relu(patch("model.0", maps, 2), 0.2)
    for i in range(1, LAYERS + 1):
        x = normed(s, f"model.{3 * i}", patch(f"model.{3 * i - 1}", x, 2 if i < LAYERS else 1))
        x = F.leaky_relu(x, 0.2)
    return patch(f"model.{3 * LAYERS + 2}", x, 1)


# -- its files -------------------------------------------------------------------------------


def settings(monkeypatch: pytest.MonkeyPatch, stride: int = 1, **model: Any) -> Any:
    """A configuration object that pickles as upstream's do: dataclasses of a module `train_config`."""
    module = ModuleType("train_config")
    monkeypatch.setitem(sys.modules, "train_config", module)

    def part(name: str, **fields: Any) -> Any:
        made = dataclasses.make_dataclass(f"{name}Config", fields)
        made.__module__ = "train_config"
        setattr(module, f"{name}Config", made)
        return made(**fields)

    chosen = {
        "encoder_type": "resnet", "encoder_stride": stride, "transformer_num_heads": HEADS,
        "transformer_attn_drop": 0.1, "discriminator_type": "configurable", "output_channels": list(MAPS),
    }  # fmt: skip
    return part(
        "Train",
        data=part("Data", image_size=(64, 64), input_dir="/elsewhere"),
        model=part("Model", **chosen | model),
        transform=part("Transform", mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3]),
        optimizer=part("Optimizer", g_lr=3e-4, g_betas=(0.5, 0.9), g_optimizer="adamw"),
    )


def content(stride: int = 1, transformer: bool = True, **more: Any) -> dict[str, Any]:
    """What upstream's trainer saves, but for the optimizers."""
    return {
        "epoch": 3,
        "global_step": 12,
        "generator_state_dict": generator_state(stride, transformer),
        "discriminator_state_dict": discriminator_state(),
        "val_loss": 0.1,
        "best_val_loss": 0.1,
        **more,
    }
