"""Converted checkpoints against upstream's own classes.

    python benchmarks/upstream.py NEUROPBR      # a clone of github.com/josephHelfenbein/NeuroPBR

Its generator and discriminator are built with random weights and running statistics, saved as its trainer
saves them, converted there and back, and asked for the same picture. Nothing of it is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser
from neuropbr_dist.inference import load_generator
from neuropbr_dist.inference.upstream import from_upstream, to_upstream

SIDE, DIM = 128, 128
KINDS = [("resnet18", 1, True), ("resnet18", 2, True), ("resnet50", 1, True), ("resnet50", 1, False),
         ("resnet101", 2, True)]  # fmt: skip
"""Backbone, stride of the stem, with a transformer or not."""


def without_download() -> None:
    """Upstream's encoder starts from ImageNet's weights; random ones do here."""
    build = resnet._resnet
    resnet._resnet = lambda block, layers, _weights, progress, **k: build(block, layers, None, progress, **k)


def configured(backbone: str, stride: int, transformer: bool) -> Any:
    """Upstream's own configuration of a small model."""
    from train_config import TrainConfig

    c = TrainConfig()
    c.data.image_size = c.data.output_size = (SIDE, SIDE)
    c.model.encoder_backbone, c.model.encoder_stride = backbone, stride
    c.model.decoder_sr_scale = 2 if stride == 2 else 0
    c.model.use_transformer, c.model.transformer_dim = transformer, DIM
    c.model.transformer_num_heads, c.model.transformer_depth = 8, 2
    c.model.discriminator_n_layers = 3
    return c


def networks(config: Any) -> tuple[nn.Module, nn.Module]:
    """Upstream's generator and discriminator, in evaluation mode."""
    from models.gan.discriminator import PatchGANDiscriminator
    from train import MultiViewPBRGenerator  # type: ignore[attr-defined]

    return MultiViewPBRGenerator(config).eval(), PatchGANDiscriminator(8, 64, 3, use_sigmoid=False).eval()


def shaken(network: nn.Module) -> nn.Module:
    """Running statistics that are not the initial ones."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.05)
            module.running_var.uniform_(0.8, 1.2)
    return network


def as_one(maps: Any) -> Tensor:
    """Upstream returns a dictionary of maps."""
    return torch.cat([maps[name] for name in ("albedo", "roughness", "metallic", "normal")], 1)


@torch.no_grad()
def compare(folder: Path, backbone: str, stride: int, transformer: bool) -> list[float]:
    """Largest differences: our generator to upstream's, then upstream's to itself after there and back (G, D)."""
    config = configured(backbone, stride, transformer)
    g, d = (shaken(network) for network in networks(config))
    states = {"generator_state_dict": g.state_dict(), "discriminator_state_dict": d.state_dict()}
    torch.save({"epoch": 7, "config": config, **states}, folder / "upstream.pth")
    views, maps = torch.randn(1, 3, 3, SIDE, SIDE), torch.rand(1, 8, SIDE, SIDE)
    ours = load_generator(from_upstream(folder / "upstream.pth", folder / "model.safetensors"))
    to_upstream(from_upstream(folder / "upstream.pth", folder / "run"), folder / "back.pth")
    back = torch.load(folder / "back.pth", weights_only=True)
    g2, d2 = networks(config)
    g2.load_state_dict(back["generator_state_dict"])
    d2.load_state_dict(back["discriminator_state_dict"])
    expected = as_one(g(views))
    differences = ours(views) - expected, as_one(g2(views)) - expected, d2(maps) - d(maps)
    return [difference.abs().max().item() for difference in differences]


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py upstream`."""
    p = new_parser(__doc__ or "", prog)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    add_debug(p)
    p.add_argument("clone", type=Path, metavar="NEUROPBR", help="a clone of upstream's repository")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print a line a kind of model."""
    sys.path.insert(0, str(parser(prog).parse_args(argv).clone / "training"))
    without_download()
    torch.manual_seed(0)
    print(
        "| encoder | stride | transformer | ours to upstream's | there and back: G | D |\n|---|---|---|---|---|---|"
    )
    for kind in KINDS:
        with TemporaryDirectory() as folder:
            found = compare(Path(folder), *kind)
        print("| " + " | ".join([*map(str, kind), *(f"{value:.1e}" for value in found)]) + " |", flush=True)


if __name__ == "__main__":
    run()
