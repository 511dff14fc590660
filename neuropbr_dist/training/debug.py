"""`--debug`: one device, no launcher, no sharding, no compile; look at a batch, then overfit it."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from neuropbr_dist.cluster import detect, pick_device
from neuropbr_dist.cluster.environment import alone
from neuropbr_dist.config import TrainConfig, as_one_stage, differences, stages_of, with_fields
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.data.device import shown, to_device
from neuropbr_dist.data.load import load_batch
from neuropbr_dist.data.open import Samples, fill_cache, open_samples
from neuropbr_dist.data.order import Slot
from neuropbr_dist.errors import UserError
from neuropbr_dist.models import size_multiple, smallest_side
from neuropbr_dist.monitor import comparison, save_png, take_look
from neuropbr_dist.parallel import Network
from neuropbr_dist.training.estimate import Activations, State, available_bytes
from neuropbr_dist.training.facts import describe_samples
from neuropbr_dist.training.first_weights import FirstWeights
from neuropbr_dist.training.memory import GENERATOR_PLANS
from neuropbr_dist.training.networks import build_networks
from neuropbr_dist.training.objective import Objective, relight_key
from neuropbr_dist.training.setup import SampleFacts, set_up
from neuropbr_dist.training.start import Start
from neuropbr_dist.training.step import gan_step

log = logging.getLogger(__name__)

STEPS = {"cpu": 5, "cuda": 20, "mps": 20}
LARGEST_ON_CPU = 128  # px: a step of the default preset takes seconds there


def debug(cfg: TrainConfig, start: Start) -> None:
    """Show a table of modules, write the first batch as a picture, and say whether one batch can be overfitted."""
    env = detect()
    if env.world_size > 1:
        raise UserError(
            f"--debug is for one process; here {env.launcher} has started {env.world_size}: {alone(env)}"
        )
    device = pick_device(cfg.training.device, env)
    first = FirstWeights.read(Path(start.init_from)) if start.init_from is not None else None
    if first is not None:
        cfg = first.followed(cfg)
    plain = plain_settings(cfg, device)
    for name, (old, new) in differences(cfg, plain).items():
        log.info(f"debug: {name} = {new} (was {old})")
    torch.use_deterministic_algorithms(True)
    samples = open_samples(plain)
    describe_samples(plain, samples)
    batch_size = min(plain.training.batch_size, len(samples.train))
    one_batch = {"batch_size": batch_size, "global_batch_size": batch_size}
    setup = set_up(with_fields(plain, training=one_batch), env, device, SampleFacts.of(samples))
    fill_cache([samples.source])
    if first is not None:
        first.check(setup.cfg)
        first.say(setup.cfg)
    networks = build_networks(setup, first=first)
    batch = first_batch(setup.cfg, samples, device)
    for part, network in networks.items():
        x = batch.views if part == "generator" else Objective(setup.cfg).judged(batch.maps, batch)
        log.info(f"\n{part}\n{module_table(network.module, x)}")
    folder = Path(cfg.training.checkpoint_dir) / "debug"
    with torch.autograd.set_detect_anomaly(True):
        overfit(setup.cfg, networks, batch, folder, start.stop_after_steps or STEPS[device.type])


def plain_settings(cfg: TrainConfig, device: torch.device) -> TrainConfig:
    """Return `cfg` with all off that hides what goes on; pictures are no larger than the device takes."""
    plain = with_fields(
        as_one_stage(cfg, stages_of(cfg)[0]),
        training={
            "engine": "single", "engine_discriminator": "same", "ds_config": None, "ds_config_discriminator": None,
            "compile": "off", "cuda_graphs": "off", "deterministic": True, "precision": "fp32",
        },
        data={"num_workers": 0, "pin_memory": False, "builtin_count": min(cfg.data.builtin_count, 4)},
        model={"encoder_pretrained": False},
    )  # fmt: skip
    if cfg.data.image_size is not None:
        return plain
    return with_fields(plain, data={"image_size": fitting_size(plain, device)})


def fitting_size(cfg: TrainConfig, device: torch.device) -> int | None:
    """Return the largest power of two up to 2048 px that fits the device; None: the set's own size fits."""
    room = available_bytes(device, 1) - State.of(cfg.model, "single", 0, 1, torch.float32).bytes
    smallest = smallest_side(cfg.model.discriminator_n_layers) if cfg.model.use_gan else 0
    size = 2048 if device.type == "cuda" else max(LARGEST_ON_CPU, smallest)
    thrifty = GENERATOR_PLANS["low"]
    while size // 2 >= max(smallest, size_multiple(cfg.model)):
        if Activations.of(cfg, size, torch.float32).bytes(thrifty) <= room:
            break
        size //= 2
    return None if size == 2048 else size


def first_batch(cfg: TrainConfig, samples: Samples, device: torch.device) -> DeviceBatch:
    """Return the first training samples on the device; of several repeats of a material, the first."""
    count, step = cfg.training.batch_size, cfg.data.renders_per_epoch or 1
    places = [(i * step) % len(samples.train) for i in range(count)]
    alignment = Alignment.of_run(cfg, training=False)
    slots = [Slot(0, i, 1.0) for i in places]
    host = load_batch(samples.source, samples.train, slots, alignment=alignment, relight=relight_key(cfg))
    log.info(f"First batch: {', '.join(host.keys)}")
    return to_device(host, count, cfg.transform, device, renderer=samples.renderer(device))


def module_table(network: nn.Module, x: Tensor) -> str:
    """Return one row a segment or module outside of them: output shape, parameters, memory of both."""
    rows, hooks = [], []

    def note(name: str, module: nn.Module, out: Tensor) -> None:
        out = out[0] if isinstance(out, tuple) else out
        params = sum(p.numel() for p in module.parameters())
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        rows.append((name, tuple(out.shape), params, trained, 4 * params / 2**20, out.nbytes / 2**20))

    for name, module in {**parts(network), "whole": network}.items():
        hooks.append(module.register_forward_hook(lambda m, _i, o, name=name: note(name, m, o)))
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    head = (
        f"{'module':<28}{'output':<26}{'parameters':>14}{'trained':>14}{'weights MiB':>13}{'output MiB':>12}"
    )
    lines = [
        f"{name:<28}{shape!s:<26}{params:>14,}{trained:>14,}{weights:>13.1f}{out:>12.1f}"
        for name, shape, params, trained, weights, out in rows
    ]
    return "\n".join([head, *lines])


def parts(network: nn.Module) -> dict[str, nn.Module]:
    """Return the segments, and every module outside of them that holds parameters of its own: together, all of them."""
    segments: dict[str, nn.Module] = network.segments()  # type: ignore[operator]
    inside = {id(m) for segment in segments.values() for m in segment.modules()}
    outside = {
        name: m
        for name, m in network.named_modules()
        if id(m) not in inside and any(True for _ in m.parameters(recurse=False))
    }
    return segments | outside


def overfit(
    cfg: TrainConfig,
    networks: dict[str, Network],
    batch: DeviceBatch,
    folder: Path,
    steps: int,
) -> None:
    """Train on the one batch without the GAN, then one step with it; say whether the loss fell.

    Args:
        steps: at least 2 are done without the GAN, to compare the last with the first.
    """
    g, d, objective = networks["generator"], networks.get("discriminator"), Objective(cfg)
    g.set_learning_rate(cfg.optimizer.g_lr)
    losses: list[float] = []
    first = None
    steps = max(steps, 2)
    for step in range(steps if d is None else steps + 1):
        gan = d if step == steps else None
        result = gan_step(g, gan, [batch], objective)
        if gan is None:
            losses.append(float(result.losses["G_loss"]))
        log.info(f"step {step + 1:>3}  " + "  ".join(f"{k} {float(v):.4f}" for k, v in result.losses.items()))
        if not bool(result.generator.finite):
            raise UserError(f"step {step + 1}: the generator's gradient is not finite")
        first = first or predict(g, batch)
    before, after = folder / "first_batch.png", folder / "after.png"
    folder.mkdir(parents=True, exist_ok=True)
    assert first is not None
    views = shown(batch.views[0], cfg.transform)
    for path, pred, title in (
        (before, first[0], "first batch, after one step"),
        (after, predict(g, batch)[0], f"after {steps} steps"),
    ):
        look = take_look("first batch", views, pred, batch.maps[0])
        save_png(path, comparison(look, title=title))
    fell = losses[-1] < losses[0]
    log.info(f"\nPictures: {before}, {after}")
    log.info(
        f"The loss {'fell' if fell else 'DID NOT FALL'}: {losses[0]:.4f} -> {losses[-1]:.4f} in {steps} steps"
    )
    if not fell:
        raise UserError(
            "one batch can't be overfitted: look at the data, the losses' weights or optimizer.g_lr"
        )


def predict(g: Network, batch: DeviceBatch) -> list[Tensor]:
    """Return the maps of each sample of a batch, without gradients."""
    with torch.no_grad():
        return list(g(batch.views))
