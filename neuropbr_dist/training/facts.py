"""What a start of a run is: where it runs, on what, from which step. One line of `history.jsonl`."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import socket
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import neuropbr_dist
from neuropbr_dist.cluster import Environment
from neuropbr_dist.config import TrainConfig, to_yaml
from neuropbr_dist.data.order import micro_batches
from neuropbr_dist.models import Discriminator, Generator
from neuropbr_dist.ranks import all_gather_object
from neuropbr_dist.training.data import Samples
from neuropbr_dist.training.engines import attention_name, compile_of, engine_of, precision_of, recompute_name

log = logging.getLogger(__name__)

PACKAGES = ("torch", "deepspeed", "timm", "numpy")


def start_facts(
    cfg: TrainConfig,
    env: Environment,
    device: torch.device,
    samples: Samples,
    parameters: dict[str, int],
    memory: str,
) -> dict[str, Any]:
    """Facts of this start, plain enough for JSON. Collective.

    Args:
        parameters: of each network, counted whole.
        memory: the memory plan, resolved.
    """
    t = cfg.training
    ranks = all_gather_object((socket.gethostname(), device_name(device)))
    micro = micro_batches(t.global_batch_size or 1, env.world_size, t.batch_size)
    return {
        "world_size": env.world_size,
        "nodes": len({host for host, _ in ranks}),
        "devices": dict(Counter(name for _, name in ranks)),
        "launcher": env.launcher,
        "engine": engine_of(cfg, env),
        "engine_discriminator": engine_of(cfg, env, "discriminator") if cfg.model.use_gan else None,
        "precision": precision_of(cfg, device),
        "activation_checkpointing": recompute_name(cfg, memory),
        "compile": compile_of(cfg, device),
        "global_batch": t.global_batch_size,
        "micro_batch": micro.size,
        "micro_batches_per_step": micro.per_step,
        "epochs": t.epochs,
        "train_samples": len(samples.train),
        "val_samples": len(samples.val),
        "image_size": samples.source.size,
        "parameters": parameters,
        "versions": versions(),
    }


def device_name(device: torch.device) -> str:
    """As its maker calls it: `NVIDIA H100 80GB HBM3`; for a CPU its model and the cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU, {cpu_model()}, {cores} cores"


def cpu_model() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of this package, Python, CUDA, the operating system and what the results depend on."""
    found = {"neuropbr_dist": neuropbr_dist.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found | {"system": f"{platform.system()} {platform.release()}"}


def describe(
    cfg: TrainConfig,
    env: Environment,
    device: torch.device,
    parameter_counts: dict[str, int],
    memory: str,
) -> None:
    """What runs, in a few lines."""
    t = cfg.training
    micro = micro_batches(t.global_batch_size or 1, env.world_size, t.batch_size)
    sizes = [f"{part} {count / 1e6:.1f} M" for part, count in parameter_counts.items()]
    log.info(f"Networks: {', '.join(sizes)} parameters")
    log.info(
        f"Engine: {engine_of(cfg, env)} on {env.world_size} x {device.type} ({env.launcher} launcher), "
        f"{precision_of(cfg, device)}, {recompute_name(cfg, memory)}, "
        f"torch.compile {compile_of(cfg, device)}{attention_name(cfg, device)}"
    )
    log.info(
        f"Batch: {t.global_batch_size} = up to {micro.per_step} x {micro.size} on {env.world_size} rank(s); "
        f"run folder {t.checkpoint_dir}"
    )


def count_parameters(cfg: TrainConfig) -> dict[str, int]:
    """From the model itself: a sharded network's `parameters()` hold this rank's piece only."""
    with torch.device("meta"):
        models: dict[str, nn.Module] = {"generator": Generator(cfg.model)}
        if cfg.model.use_gan:
            models["discriminator"] = Discriminator(cfg.model)
    return {part: sum(p.numel() for p in model.parameters()) for part, model in models.items()}


def facts(cfg: TrainConfig, samples: Samples) -> dict[str, str]:
    """What must be the same on every rank."""
    return {
        "code": code_hash(),
        "torch version": torch.__version__,
        "configuration": hashlib.sha256(to_yaml(cfg).encode()).hexdigest()[:16],
        "data set": samples.fingerprint,
    }


def code_hash() -> str:
    """Of the package's sources."""
    files = sorted(Path(neuropbr_dist.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]
