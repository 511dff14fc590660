"""From the configuration to the two networks: which engine, precision and batch cut."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from neuropbr_dist import kernels
from neuropbr_dist.cluster import Environment
from neuropbr_dist.config import TrainConfig
from neuropbr_dist.config.deepspeed import read as read_ds
from neuropbr_dist.config.deepspeed import resolve as resolve_ds
from neuropbr_dist.data.order import micro_batches
from neuropbr_dist.errors import UserError
from neuropbr_dist.models import (
    Discriminator,
    Generator,
    PretrainedUnavailable,
    load_backbone,
    pretrained_backbone,
)
from neuropbr_dist.parallel import Adam, Network, Plan, build_network
from neuropbr_dist.parallel.zero_section import refuse_unknown
from neuropbr_dist.ranks import broadcast_object, is_rank_0
from neuropbr_dist.training.estimate import Need, available_bytes, choose_plan, refuse_too_small
from neuropbr_dist.training.memory import Recompute, recompute_patterns

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def engine_of(cfg: TrainConfig, env: Environment, part: str = "generator") -> str:
    """`training.engine`, or `training.engine_discriminator`, with `auto` and `same` resolved."""
    t, name, file = cfg.training, "training.engine", "--ds"
    engine, ds_config = t.engine, t.ds_config
    if part == "discriminator" and t.engine_discriminator != "same":
        name, file = "training.engine_discriminator", "--ds-discriminator"
        engine, ds_config = t.engine_discriminator, t.ds_config_discriminator or t.ds_config
    if engine == "single" and env.world_size > 1:
        raise UserError(f"{name} = single with {env.world_size} ranks; use fsdp, ddp or deepspeed")
    if engine == "deepspeed" and ds_config is None:
        raise UserError(f"{name} = deepspeed needs {file} FILE (ds_configs/zero2.json, say)")
    if engine != "auto":
        return engine
    if ds_config is not None:
        return "deepspeed"
    return "fsdp" if env.world_size > 1 else "single"


def precision_of(cfg: TrainConfig, device: torch.device) -> str:
    """`bf16`, `fp16` or `fp32`: as configured, else the best that the device has."""
    if cfg.training.precision != "auto":
        return cfg.training.precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def ds_path(cfg: TrainConfig, env: Environment, part: str) -> str | None:
    """DeepSpeed JSON of a network; None on other engines."""
    t = cfg.training
    if engine_of(cfg, env, part) != "deepspeed":
        return None
    return (t.ds_config_discriminator if part == "discriminator" else None) or t.ds_config


def zero_stage(cfg: TrainConfig, env: Environment, part: str) -> int:
    """Of the DeepSpeed file that one network (`generator` or `discriminator`) runs under; 0 without one."""
    path = ds_path(cfg, env, part)
    return 0 if path is None else read_ds(path).get("zero_optimization", {}).get("stage", 0)


def recompute_of(cfg: TrainConfig, part: str, memory: str) -> Recompute:
    """What is computed again in this network under memory plan `memory`."""
    return recompute_patterns(memory, cfg.training.activation_checkpointing, part)


def recompute_name(cfg: TrainConfig, memory: str) -> str:
    """For a person: `memory plan fast`, or `activation checkpointing full`."""
    kind = cfg.training.activation_checkpointing
    return f"memory plan {memory}" if kind == "plan" else f"activation checkpointing {kind}"


def compile_of(cfg: TrainConfig, device: torch.device) -> str:
    """`training.compile` resolved: `blocks` or `off`."""
    if cfg.training.compile == "auto":
        return "blocks" if device.type == "cuda" else "off"
    return cfg.training.compile


def attention_name(cfg: TrainConfig, device: torch.device) -> str:
    """Of the start's line: FlashAttention-4 where it runs or would, nothing elsewhere."""
    t = cfg.training
    if device.type != "cuda" or not t.kernels or t.deterministic or precision_of(cfg, device) != "bf16":
        return ""
    if not kernels.flash_gains():
        return ""
    return ", FlashAttention-4" if kernels.flash_installed() else " (faster: pip install flash-attn-4)"


def compiles_losses(cfg: TrainConfig, device: torch.device) -> bool:
    """Where the networks are, on a GPU: a CPU's compiler takes minutes over them."""
    return device.type == "cuda" and compile_of(cfg, device) == "blocks"


def need_of(cfg: TrainConfig, env: Environment, device: torch.device) -> Need:
    """What the run asks of a rank's memory."""
    return Need(
        cfg,
        dtype=DTYPES[precision_of(cfg, device)] or torch.float32,
        engine=engine_of(cfg, env),
        stage=zero_stage(cfg, env, "generator"),
        world=env.world_size,
    )


def check_memory(cfg: TrainConfig, size: int, env: Environment, device: torch.device) -> None:
    """Refuse pictures of `size` px that this rank's device can't train on."""
    room = available_bytes(device, env.local_world_size)
    refuse_too_small(need_of(cfg, env, device), size, room, device.type)


def memory_plan(cfg: TrainConfig, size: int, env: Environment, device: torch.device) -> str:
    """`training.memory` with `auto` resolved by rank 0's free memory. Collective."""
    t = cfg.training
    if t.memory != "auto" or t.activation_checkpointing != "plan":
        return "low" if t.memory == "auto" else t.memory
    room = broadcast_object(available_bytes(device, env.local_world_size))
    name, why = choose_plan(need_of(cfg, env, device), size, room)
    log.info(f"Memory plan: {name} ({why}; training.memory names another)")
    return name


def backbone_weights(cfg: TrainConfig) -> dict[str, Any] | None:
    """ImageNet weights from rank 0, the same on every rank; `cfg` notes whether they were had."""
    m = cfg.model
    if m.encoder_type != "resnet" or not m.encoder_pretrained:
        m.encoder_pretrained = False
        return None
    weights: dict[str, Any] | str | None = None
    if is_rank_0():
        try:
            weights = pretrained_backbone(m.encoder_backbone)
        except PretrainedUnavailable as error:
            weights = str(error)
    weights = broadcast_object(weights)
    if isinstance(weights, dict):
        return weights
    m.encoder_pretrained = False
    kind = "group norm, " if m.encoder_norm == "auto" else ""
    log.info(
        f"No ImageNet weights for {m.encoder_backbone}: {weights}. The encoder starts from random weights "
        f"({kind}model.encoder_pretrained = false silences this)"
    )
    return None


def build_networks(
    cfg: TrainConfig,
    env: Environment,
    device: torch.device,
    backbone: dict[str, Any] | None,
    memory: str = "low",
) -> dict[str, Network]:
    """Generator and, with a GAN, discriminator: two engines, each sharded on its own.

    Args:
        memory: the memory plan, resolved (`memory_plan`).
    """
    refuse_uneven_batch_norm(cfg, env.world_size)
    kernels.enable(cfg.training.kernels)
    torch.manual_seed(cfg.training.seed)  # the same weights on every rank before sharding
    generator = Generator(cfg.model)
    if backbone is not None:
        load_backbone(generator.encoder, backbone)
    networks = {"generator": build_network(generator, device, plan(cfg, env, device, "generator", memory))}
    if cfg.model.use_gan:
        discriminator: nn.Module = Discriminator(cfg.model)
        networks["discriminator"] = build_network(
            discriminator, device, plan(cfg, env, device, "discriminator", memory)
        )
    return networks


def refuse_uneven_batch_norm(cfg: TrainConfig, world_size: int) -> None:
    """A short rank's filler samples would count in the statistics."""
    m, batch = cfg.model, cfg.training.global_batch_size
    assert batch is not None
    for name, kind in (("norm", m.norm), ("encoder_norm", m.encoder_norm)):
        if kind in ("batch", "sync_batch") and batch % world_size:
            raise UserError(
                f"model.{name} = {kind} with training.global_batch_size = {batch} on {world_size} ranks: "
                "every rank needs as many samples; change one of the three"
            )


def plan(cfg: TrainConfig, env: Environment, device: torch.device, part: str, memory: str) -> Plan:
    """How one network is spread, compiled and optimised, all choices made."""
    t, o, is_g = cfg.training, cfg.optimizer, part == "generator"
    engine = engine_of(cfg, env, part)
    precision = precision_of(cfg, device)
    betas = o.g_betas if is_g else o.d_betas
    norms = (cfg.model.norm, cfg.model.encoder_norm if is_g else cfg.model.norm)
    return Plan(
        engine=engine,
        adam=Adam(
            lr=o.g_lr if is_g else o.d_lr,
            betas=(betas[0], betas[1]),
            weight_decay=o.g_weight_decay if is_g else o.d_weight_decay,
            eps=o.eps,
        ),
        clip=t.grad_clip_norm,
        dtype=DTYPES[precision],
        recompute=recompute_of(cfg, part, memory),
        compile_blocks=compile_of(cfg, device) == "blocks",
        sync_batch="sync_batch" in norms,
        shard=t.shard,
        ranks_per_node=env.local_world_size,
        cpu_offload=t.cpu_offload and is_g,
        ds_config=ds_config(cfg, env, precision, part) if engine == "deepspeed" else None,
    )


def ds_config(cfg: TrainConfig, env: Environment, precision: str, part: str) -> dict[str, Any]:
    """The DeepSpeed file of one network, its `auto` values filled in from the run."""
    t, path = cfg.training, ds_path(cfg, env, part)
    assert path is not None and t.global_batch_size is not None  # engine_of has seen to the file
    micro = micro_batches(t.global_batch_size, env.world_size, t.batch_size)
    tree = resolve_ds(
        path,
        global_batch=t.global_batch_size,
        micro_batch=micro.size,
        accumulation=micro.per_step,
        world_size=env.world_size,
        clip=t.grad_clip_norm,
        precision=precision,
    )
    refuse_unknown(tree["zero_optimization"], path)
    return tree
