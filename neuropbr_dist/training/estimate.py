"""Estimate of the memory that a step takes, worked out without running it.

The networks run once on the meta device, where tensors have shapes and no
content, and what autograd would keep is added up.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from neuropbr_dist.config import ModelConfig, TrainConfig
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.render import SUPERSAMPLED_UP_TO
from neuropbr_dist.models import (
    Discriminator,
    Generator,
    encoder_norm,
    judged_channels,
    size_multiple,
    smallest_side,
    view_channels,
)
from neuropbr_dist.parallel.blocks import kind_of
from neuropbr_dist.training.memory import PLANS, Recompute, recompute_patterns

GIB = 2**30
FILL = 0.92  # of the free memory: the allocator's cuts and the libraries' workspaces need the rest
# What is kept in truth, of what the bare trace says, rounded up. With the kernels, by the encoder's norm, from
# benchmarks/results/2026-11-26-step-h100.md: 63.7, 34.3 and 14.0 GiB with group norm, 44.5, 29.1 and 14.0 with a
# frozen batch norm (46.4 at 4096 px), of which 3.1 are state. Compiled, from benchmarks/results/2026-11-24-step-h100.md.
KEPT_BY_KERNELS = {
    "group": {"fast": 0.76, "balanced": 0.57, "low": 0.55},
    "frozen_batch": {"fast": 0.7, "balanced": 0.63, "low": 0.6},
}
KEPT_COMPILED = {"fast": 0.9, "balanced": 0.7, "low": 0.8}
BYTES_A_RENDERED_POINT = 500  # measured: what shading a point holds, all its vectors
LOSS_COPIES = 12  # float32 copies of the eight channels that losses and their gradients hold at once


def rendering_bytes(cfg: TrainConfig, size: int) -> int:
    """Return what rendering a micro-batch, a view at a time, holds uncompiled: 0 where views are stored."""
    if cfg.data.render != "online":
        return 0
    samples = 4 if size <= SUPERSAMPLED_UP_TO else 1
    return BYTES_A_RENDERED_POINT * cfg.training.batch_size * samples * size * size


@dataclass
class Kept:
    """Bytes that autograd keeps: inside each segment, and what enters segments or lies between them."""

    inside: dict[str, int]
    outside: int


def trace(network: nn.Module, x: Tensor, tokens: int) -> Kept:
    """Return what one forward pass of `network` (on meta) on `x` keeps without recomputation."""
    place = ["outside"]
    kept: dict[str, dict[int, Tensor]] = defaultdict(dict)

    def pack(t: Tensor) -> Tensor:
        # On meta, attention takes its plain form, whose tokens x tokens matrix no real device keeps.
        is_score = t.ndim >= 2 and t.shape[-1] == t.shape[-2] == tokens
        if not isinstance(t, nn.Parameter) and not is_score:
            kept[place[-1]].setdefault(id(t.untyped_storage()), t)
        return t

    for name, segment in network.segments().items():  # type: ignore[operator]
        segment.register_forward_pre_hook(lambda _m, _a, name=name: place.append(name))
        segment.register_forward_hook(lambda _m, args, _o: place.pop() and [pack(a) for a in args] and None)
    with saved_tensors_hooks(pack, lambda t: t):
        network(x)
    sizes = {name: sum(t.untyped_storage().nbytes() for t in found.values()) for name, found in kept.items()}
    return Kept({name: size for name, size in sizes.items() if name != "outside"}, sizes.get("outside", 0))


@dataclass(frozen=True)
class Activations:
    """Activations that one micro-batch's step keeps, traced once; `bytes` says how much stays under a memory plan."""

    generator: Kept
    always: int
    """Bytes of the losses and of the discriminator's two passes."""
    attention: int
    """Bytes of one transformer block's attention output."""
    samples: int
    """Views in the encoder's batch: what `split` divides by."""

    @classmethod
    def of(cls, cfg: TrainConfig, size: int, dtype: torch.dtype) -> Activations:
        """Trace a micro-batch of `training.batch_size` samples of `size` px."""
        model, batch = cfg.model, cfg.training.batch_size
        rows = size // cfg.training.sample_ranks  # a rank's, where several share a sample
        tokens = 3 * (rows // size_multiple(model)) * (size // size_multiple(model))
        tokens = tokens if model.use_transformer else 0
        always = LOSS_COPIES * batch * 8 * rows * size * 4
        with torch.device("meta"):
            g = Generator(model).to(dtype)
            channels = view_channels(model)
            # The batch itself, float32, was in what the figures above were taken with; what the plane adds wasn't.
            always += batch * 3 * (channels - 3) * rows * size * 4
            kept = trace(g, torch.empty(batch, 3, channels, rows, size, dtype=dtype), tokens)
            if model.use_gan:
                d = Discriminator(model).to(dtype)
                judged = trace(d, torch.empty(batch, judged_channels(model), rows, size, dtype=dtype), 0)
                always += 2 * (judged.outside + sum(judged.inside.values()))
        return cls(kept, always, batch * tokens * model.transformer_dim * dtype.itemsize, 3 * batch)

    def bytes(self, patterns: Recompute) -> int:
        """Return peak bytes.

        Args:
            patterns: what the generator computes again (`memory.recompute_patterns`).
        """
        total = self.generator.outside + self.always
        transient = [0]  # of the segments computed again, one at a time lives in full
        for name, held in self.generator.inside.items():
            kind = kind_of(name, patterns)
            if kind == "none":
                total += held
            else:
                transient.append(held // (self.samples if kind == "split" else 1))
            if kind == "selective" and ".blocks." in name:
                total += self.attention
        return total + max(transient)


@dataclass(frozen=True)
class State:
    """Bytes on one rank that don't depend on the pictures."""

    held: int
    """Bytes of parameters, with a gathered block's, and of Adam's state."""
    gradients: int
    """Bytes of gradients, which grow while activations go; 0 where the engine holds them all along."""

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        engine: str,
        stage: int,
        world: int,
        dtype: torch.dtype,
        averaged: bool = False,
    ) -> State:
        """Return the state of both networks under one engine.

        Args:
            stage: of ZeRO.
            dtype: compute dtype; DeepSpeed's parameters have it, others' are float32.
            averaged: the generator's moving average is kept, where its masters lie.
        """
        counts, low = count_parameters(model), dtype.itemsize
        count = sum(counts.values())
        adam = 12 if low < 4 else 8  # bytes a parameter; a float32 master beside a short parameter
        average = 4 * counts["generator"] if averaged else 0
        if engine == "fsdp":
            return cls((count * 12 + average) // world + count * low // 4, count * 4 // world)
        if stage == 3:
            return cls((count * (2 * low + adam) + average) // world + count * low // 4, 0)
        if engine == "deepspeed":
            return cls(count * low + (count * adam + average) // world, count * low)
        return cls(count * 16 + average, 0) if engine == "ddp" else cls(count * 12 + average, count * 4)

    @property
    def bytes(self) -> int:
        """Most bytes held at once when no activation is left."""
        return self.held + self.gradients


def count_parameters(model: ModelConfig) -> dict[str, int]:
    """Return each network's parameters, counted in the model itself: of a sharded one a rank has a piece only."""
    with sizes_that_exist("its networks"), torch.device("meta"):
        models: dict[str, nn.Module] = {"generator": Generator(model)}
        if model.use_gan:
            models["discriminator"] = Discriminator(model)
    return {part: sum(p.numel() for p in net.parameters()) for part, net in models.items()}


@contextmanager
def sizes_that_exist(what: str) -> Iterator[None]:
    """Raise a UserError for what is so large that not even a tensor without content can have its shape."""
    try:
        yield
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:
        said = " ".join(str(error).split())[:120]
        # torch has no type of its own for it; any other error of these types is a fault of ours.
        if isinstance(error, RuntimeError | TypeError) and not re.search(
            "overflow|negative dim", str(error), re.I
        ):
            raise
        raise UserError(
            f"the run is too large for any memory: {what} ({said}); lower data.image_size, training.batch_size or "
            "the widths of model"
        ) from error


def available_bytes(device: torch.device, ranks_here: int) -> int:
    """Return bytes that one rank may use: what is free of its GPU and allowed to it, or its part of the host's."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
        return min(free, allowed - torch.cuda.memory_reserved(device))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // max(ranks_here, 1)


@dataclass(frozen=True)
class Need:
    """Memory that one rank of a run needs, by size and memory plan."""

    cfg: TrainConfig
    dtype: torch.dtype
    """Compute dtype."""
    engine: str
    stage: int
    """ZeRO stage."""
    world: int

    def state(self) -> State:
        """Return what the rank holds whatever the pictures."""
        averaged = self.cfg.training.ema_decay is not None
        return State.of(self.cfg.model, self.engine, self.stage, self.world, self.dtype, averaged)

    def at(self, size: int) -> dict[str, int]:
        """Return bytes of a rank by memory plan, for pictures of `size` px.

        Activations are most when the backward pass begins: no gradient is there then, but an earlier
        micro-batch's.
        """
        cfg, state = self.cfg, self.state()
        before = state.bytes if self.accumulates() else state.held
        with sizes_that_exist(f"pictures of {size} px in micro-batches of {cfg.training.batch_size}"):
            activations = Activations.of(cfg, size, self.dtype)
        kind = cfg.training.activation_checkpointing
        patterns = {plan: recompute_patterns(plan, kind, "generator") for plan in PLANS}
        kept = KEPT_BY_KERNELS[encoder_norm(cfg.model)] if self.runs_kernels() else KEPT_COMPILED
        rendered = rendering_bytes(cfg, size)  # before there is an activation
        return {
            plan: max(
                state.bytes, before + max(rendered, int(kept[plan] * activations.bytes(patterns[plan])))
            )
            for plan in PLANS
        }

    def accumulates(self) -> bool:
        """Return whether a step has several micro-batches."""
        t = self.cfg.training
        return (t.global_batch_size or 0) * t.sample_ranks > t.batch_size * self.world

    def runs_kernels(self) -> bool:
        """Return whether the hand-written kernels take the convolutional parts over."""
        norms = {self.cfg.model.norm, encoder_norm(self.cfg.model)}
        return self.cfg.training.kernels and self.dtype.itemsize == 2 and norms <= {"group", "frozen_batch"}


def fastest_plan(wanted: Mapping[str, int], room: int) -> str:
    """Return the fastest memory plan whose bytes fit into `room` with something to spare; the slowest if none does."""
    return next((plan for plan in PLANS if wanted[plan] <= FILL * room), PLANS[-1])


def choose_plan(need: Need, size: int, room: int | None, device_type: str) -> tuple[str, str]:
    """Return a run's memory plan, and why this one where `training.memory` leaves it open (else empty).

    Args:
        size: side of the pictures in pixels.
        room: this rank's memory in bytes. `auto` is the fastest plan that fits into it, the slowest if none
            does. None: unknown; then it is the slowest.
        device_type: for messages.

    Raises:
        UserError: the estimate is above `room` under any plan allowed; names the side that would fit.
    """
    t = need.cfg.training
    plan = PLANS[-1] if t.memory == "auto" else t.memory
    if room is None:
        return plan, ""
    wanted = need.at(size)
    if wanted[plan] > room:
        raise UserError(too_small(need, size, room, device_type, plan, wanted))
    if t.memory != "auto" or t.activation_checkpointing != "plan":
        return plan, ""
    plan = fastest_plan(wanted, room)
    return plan, f"about {wanted[plan] / GIB:.1f} of {room / GIB:.1f} GiB free"


def too_small(
    need: Need, size: int, room: int, device_type: str, plan: str, wanted: Mapping[str, int]
) -> str:
    """Return in one line that `plan` doesn't fit into `room` bytes, and what would."""
    if wanted[PLANS[-1]] <= room:
        return (
            f"training.memory = {plan} at {size} px: about {wanted[plan] / GIB:.0f} GiB needed a rank, "
            f"{room / GIB:.0f} GiB free; training.memory = auto or low fits"
        )
    model = need.cfg.model
    multiple = size_multiple(model)
    least = smallest_side(model.discriminator_n_layers) if model.use_gan else multiple
    halves = (size // 2**n // multiple * multiple for n in range(1, size.bit_length()))
    possible = (half for half in halves if half >= max(multiple, least))
    fitting = next((half for half in possible if need.at(half)[plan] <= room), None)
    remedy = "--config quick_test" if fitting is None else f"--set data.image_size={fitting}"
    return (
        f"{size} px on this {device_type} device: about {wanted[plan] / GIB:.0f} GiB needed a rank, "
        f"{room / GIB:.0f} GiB there. What fits: --config demo (minutes on a CPU), or {remedy}; "
        "less memory also by --set model.encoder_stride=2 or more GPUs"
    )
