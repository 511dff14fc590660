"""How much memory a step takes, worked out without running it.

The networks run once on the meta device, where tensors have shapes and no
content, and what autograd would keep is added up. It errs on the large side:
compiled blocks keep less (measured: 27 GiB where this says 34).
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from neuropbr_dist.config import ModelConfig, TrainConfig
from neuropbr_dist.errors import UserError
from neuropbr_dist.models import Discriminator, Generator, size_multiple

GIB = 2**30
LOSS_COPIES = 12  # float32 copies of the eight channels that losses and their gradients hold at once


@dataclass
class Kept:
    """Bytes that autograd keeps: inside each segment, and what enters segments or lies between them."""

    inside: dict[str, int]
    outside: int


def trace(network: nn.Module, x: Tensor, tokens: int) -> Kept:
    """What one forward pass of `network` (on meta) on `x` keeps without recomputation."""
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


def activation_bytes(cfg: TrainConfig, size: int, batch: int, dtype: torch.dtype) -> int:
    """Peak bytes of activations of one micro-batch at `size` px."""
    model, recompute = cfg.model, cfg.training.activation_checkpointing
    side = size // size_multiple(model)
    tokens = 3 * side * side if model.use_transformer else 0
    with torch.device("meta"):
        g = Generator(model).to(dtype)
        kept = trace(g, torch.empty(batch, 3, 3, size, size, dtype=dtype), tokens)
        total = kept.outside + LOSS_COPIES * batch * 8 * size * size * 4
        if recompute == "none":
            total += sum(kept.inside.values())
        else:
            total += max(kept.inside.values())  # one segment at a time lives in full
        if recompute == "selective":
            total += model.transformer_depth * batch * tokens * model.transformer_dim * dtype.itemsize
        if model.use_gan:
            d = Discriminator(model).to(dtype)
            judged = trace(d, torch.empty(batch, 8, size, size, dtype=dtype), 0)
            total += 2 * (judged.outside + sum(judged.inside.values()))
    return total


def state_bytes(model: ModelConfig, engine: str, stage: int, world: int, dtype: torch.dtype) -> int:
    """Bytes of parameters, gradients and Adam's state on one rank."""
    with torch.device("meta"):
        count = sum(p.numel() for p in Generator(model).parameters())
        if model.use_gan:
            count += sum(p.numel() for p in Discriminator(model).parameters())
    if engine == "fsdp" or stage == 3:
        return count * 16 // world + count * dtype.itemsize // 4
    if engine == "deepspeed":
        low = dtype.itemsize
        return count * (2 * low + (12 if low < 4 else 8) // world)
    return count * (16 + (dtype.itemsize if dtype.itemsize < 4 else 0))


def available_bytes(device: torch.device, ranks_here: int) -> int:
    """Memory that one rank may use: of its GPU, or its part of the host's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // max(ranks_here, 1)


def refuse_too_small(
    cfg: TrainConfig,
    size: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    engine: str,
    stage: int,
    world: int,
    ranks_here: int,
) -> None:
    """Stop before anything is made if a step won't fit, and name the size that would.

    Raises:
        UserError: the estimate is above the memory of this rank's device.
    """
    room = available_bytes(device, ranks_here)

    def needed(side: int) -> int:
        state = state_bytes(cfg.model, engine, stage, world, dtype)
        return state + activation_bytes(cfg, side, cfg.training.batch_size, dtype)

    if needed(size) <= room:
        return
    smaller = size
    while smaller > size_multiple(cfg.model) and needed(smaller) > room:
        smaller //= 2
    fits = f"--set data.image_size={smaller}" if needed(smaller) <= room else "--config quick_test"
    raise UserError(
        f"{size} px on this {device.type} device: about {needed(size) / GIB:.0f} GiB needed a rank, "
        f"{room / GIB:.0f} GiB there. What fits: --config demo (minutes on a CPU), or {fits}; "
        "less memory also by --set model.encoder_stride=2 or more GPUs"
    )
