"""Facts of a start of a run: where it runs, on what, from which step. One line of `history.jsonl`."""

from __future__ import annotations

import hashlib
import logging
import platform
import socket
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import neuropbr_dist
from neuropbr_dist import kernels
from neuropbr_dist.config import TrainConfig, stages_of, to_yaml
from neuropbr_dist.data.open import Samples, builtin_cache
from neuropbr_dist.data.sides import side_advice
from neuropbr_dist.processes import usable_cores
from neuropbr_dist.ranks import all_gather_object
from neuropbr_dist.training.setup import Setup
from neuropbr_dist.training.stages import RunStage, StagedRun

log = logging.getLogger(__name__)

PACKAGES = ("torch", "deepspeed", "timm", "numpy")


def start_facts(run: StagedRun, stage: RunStage) -> dict[str, Any]:
    """Return the facts of this start, in the stage that it is in, plain enough for JSON. Collective."""
    setup = stage.setup
    env, networks, samples = setup.env, setup.networks, setup.samples
    ranks = all_gather_object((socket.gethostname(), device_name(setup.device)))
    return {
        "world_size": env.world_size,
        "sample_ranks": setup.sample_ranks,
        "nodes": len({host for host, _ in ranks}),
        "devices": dict(Counter(name for _, name in ranks)),
        "launcher": env.launcher,
        "engine": setup.engine,
        "engine_discriminator": networks["discriminator"].engine if "discriminator" in networks else None,
        "precision": setup.precision,
        "activation_checkpointing": setup.recompute,
        "compile": setup.compile,
        "cuda_graphs": setup.replays,
        "global_batch": setup.cfg.training.global_batch_size,
        "micro_batch": setup.micro.size,
        "micro_batches_per_step": setup.micro.per_step,
        "epochs": run.cfg.training.epochs,
        "source": samples.described,
        "train_samples": samples.train,
        "val_samples": samples.val,
        "image_size": samples.side,
        "parameters": setup.parameters,
        "versions": versions(),
    } | ({"stage": stage.number, "stages": len(run.stages)} if run.cfg.training.stages else {})


def device_name(device: torch.device) -> str:
    """Return a GPU's name as its maker calls it (`NVIDIA H100 80GB HBM3`); a CPU's model and the cores this
    process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    return f"CPU, {cpu_model()}, {usable_cores()} cores"


def cpu_model() -> str:
    """Return the processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of this package, Python, CUDA, the operating system and what the results depend on."""
    found = {"neuropbr_dist": neuropbr_dist.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found | {"system": f"{platform.system()} {platform.release()}"}


def describe_samples(cfg: TrainConfig, samples: Samples) -> None:
    """Say what the run trains on.

    Args:
        cfg: before it was filled in by what was found.
    """
    asked, sides = cfg.data, sides_of(cfg, samples)
    if builtin_cache(samples.source) is not None:
        why = "data.builtin" if asked.builtin else "No data named and none at ./data"
        log.info(
            f"{why}: training on {asked.builtin_count} built-in procedural materials at {sides} "
            "(--materials takes your own, --input-dir and --output-dir take views of them too)"
        )
    log.info(f"Source: {samples.described}")
    kept, entries = samples.cameras
    if samples.align == "plane":
        without = f"; {entries - kept} of {entries} samples have none and are left out"
        said = without if kept < entries else ""
        log.info(f"Views are rectified by their cameras (model.align = plane){said}")
    elif kept:
        log.info(
            f"Views stay as they are (model.align = none), though {kept} of {entries} samples have cameras"
        )
    log.info(f"Samples: {len(samples.train)} for training, {len(samples.val)} for validation, {sides}")
    for number, stage in enumerate(cfg.training.stages, 1):
        if advice := side_advice(samples.source, stage.image_size or samples.source.size):
            log.info(f"Stage {number}: {advice}")


def sides_of(cfg: TrainConfig, samples: Samples) -> str:
    """Return the sides of all stages, for a person: `64 px`, `64, 256 and 2048 px`."""
    found = dict.fromkeys(stage.image_size or samples.source.size for stage in stages_of(cfg))
    *others, last = map(str, found)
    return f"{', '.join(others)} and {last} px" if others else f"{last} px"


def describe(run: StagedRun, stage: RunStage, whole: bool = True) -> None:
    """Say what runs, in a few lines.

    Args:
        whole: not only what a stage changes.
    """
    setup, several = stage.setup, run.cfg.training.stages
    t, env = setup.cfg.training, setup.env
    if whole:
        sizes = [f"{part} {count / 1e6:.1f} M" for part, count in setup.parameters.items()]
        log.info(f"Networks: {', '.join(sizes)} parameters")
        start, end = t.gan_start_epoch, run.cfg.training.epochs
        if run.cfg.model.use_gan and start > end:
            log.info(
                f"No GAN: training.gan_start_epoch = {start}, but the run ends after epoch {end}; "
                "model.use_gan = false saves the discriminator's memory"
            )
    if several:
        first = run.begins(stage) // stage.order.n + 1
        scale = f", learning rate x {stage.wanted.lr_scale:g}" if stage.wanted.lr_scale != 1 else ""
        log.info(
            f"Stage {stage.number} of {len(several)}: epochs {first} to {t.epochs}, {setup.samples.side} px{scale}"
        )
    log.info(
        f"Engine: {setup.engine} on {env.world_size} x {setup.device.type} ({env.launcher} launcher), "
        f"{setup.precision}, {setup.recompute}, torch.compile {setup.compile}"
        f"{graphs(setup)}{attention_name(setup)}"
    )
    where = f"{env.world_size} rank(s)"
    if t.sample_ranks > 1:
        rows = setup.samples.side // t.sample_ranks
        where = f"{setup.data_place[0]} x {t.sample_ranks} ranks, each with {rows} rows of every sample"
    log.info(
        f"Batch: {t.global_batch_size} = up to {setup.micro.per_step} x {setup.micro.size} on {where}; "
        f"run folder {t.checkpoint_dir}"
    )


def graphs(setup: Setup) -> str:
    """Return `CUDA graphs`, or why there are none on a GPU; for the line of the engine."""
    if setup.replays:
        return ", CUDA graphs"
    return "" if setup.device.type != "cuda" else f", no CUDA graphs ({setup.graphs_why_not})"


def attention_name(setup: Setup) -> str:
    """Return `FlashAttention-4` where it runs or would, nothing elsewhere; for the line of the engine."""
    t = setup.cfg.training
    if setup.device.type != "cuda" or not t.kernels or t.deterministic or setup.precision != "bf16":
        return ""
    if not kernels.flash_gains():
        return ""
    return ", FlashAttention-4" if kernels.flash_installed() else " (faster: pip install flash-attn-4)"


def facts(run: StagedRun) -> dict[str, str]:
    """Return what must be the same on every rank, each fact by its name."""
    return {
        "code": code_hash(),
        "torch version": torch.__version__,
        "configuration": hashlib.sha256(to_yaml(run.cfg).encode()).hexdigest()[:16],
        "data set": run.fingerprint,
    }


def code_hash() -> str:
    """Return a hash of the package's sources, 16 hexadecimal digits."""
    files = sorted(Path(neuropbr_dist.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]
