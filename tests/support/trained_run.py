"""A run of two steps of a tiny model with batch norm (so that it has buffers), trained once a session."""

from __future__ import annotations

import atexit
import shutil
import signal
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from neuropbr_dist.checkpoint import open_newest
from neuropbr_dist.cluster.stop import SIGNALS
from neuropbr_dist.commands.train import run as train
from neuropbr_dist.config import TrainConfig, from_yaml
from neuropbr_dist.models import Generator
from tests.support.material_files import write_set
from tests.support.tiny import FIELDS, set_words

SIZE = 32
METADATA = {f"sample_{i:04d}": f"material_{i}" for i in range(6)}
SETTINGS = {
    "data.image_size": SIZE,
    "data.num_workers": 0,
    "transform.mean": [0.4, 0.5, 0.6],
    "transform.std": [0.2, 0.25, 0.3],
    **FIELDS,
    "model.encoder_channels": [8, 16, 32],
    "model.encoder_norm": "batch",
    "model.norm": "batch",
    "training.batch_size": 5,
    "training.global_batch_size": 5,  # of six samples one is held out: a step an epoch
    "training.gan_start_epoch": 0,
    "training.val_every_n_epochs": 2,
    "training.use_tensorboard": False,
}
"""Multiples of 4 px; `data.image_size` 32."""


@cache
def trained_run() -> tuple[Path, Path, Path]:
    """(run's folder with two checkpoints, input folder, output folder); not to be written to."""
    root = Path(mkdtemp(prefix="neuropbr-test-"))
    atexit.register(shutil.rmtree, root)
    renders, maps = write_set(root, METADATA, size=SIZE)
    folders = ["--input-dir", str(renders), "--output-dir", str(maps), "--checkpoint-dir", str(root / "run")]
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    train(
        [
            "--config",
            "demo",
            "--device",
            "cpu",
            "--engine",
            "single",
            "--epochs",
            "2",
            *folders,
            *set_words(SETTINGS),
        ]
    )
    for number, handler in handlers.items():  # Ctrl-C belongs to pytest again
        signal.signal(number, handler)
    return root / "run", renders, maps


def reference(checkpoint: Path) -> tuple[Generator, TrainConfig]:
    """The plain generator of a checkpoint, put together by hand, in eval mode."""
    opened = open_newest(checkpoint)
    assert opened is not None
    with opened:
        config = from_yaml(opened.config_yaml, "")
        generator = Generator(config.model)
        stored = opened.read("generator/")
    names = {"param": dict(generator.named_parameters()), "buffer": dict(generator.named_buffers())}
    with torch.no_grad():
        for kind, tensors in names.items():
            for name, tensor in tensors.items():
                tensor.copy_(stored[f"generator/{kind}/{name}"])
    return generator.eval(), config


def normalised(views: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """uint8 (..., 3, H, W) -> what the generator is trained on."""
    mean, std = torch.tensor(config.transform.mean), torch.tensor(config.transform.std)
    return (views / 255 - mean[:, None, None]) / std[:, None, None]


def some_views(size: int = SIZE) -> torch.Tensor:
    """(3, 3, size, size) uint8, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=generator)
