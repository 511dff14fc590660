"""Set-up of a start of a run: every choice that configuration and machine leave open, made once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch

from neuropbr_dist.cluster import Environment
from neuropbr_dist.config import (
    DataConfig,
    ModelConfig,
    Stage,
    TrainConfig,
    check_judged,
    check_mixtures,
    check_size,
    settled,
    settled_stats,
    stages_of,
    with_fields,
)
from neuropbr_dist.config.deepspeed import resolve as resolve_deepspeed
from neuropbr_dist.data.open import Align, Samples
from neuropbr_dist.data.order import MicroBatching, micro_batches
from neuropbr_dist.errors import UserError
from neuropbr_dist.models import size_multiple, smallest_side
from neuropbr_dist.parallel import Adam, NetworkSetup
from neuropbr_dist.training.estimate import Need, choose_plan, count_parameters
from neuropbr_dist.training.memory import recompute_patterns
from neuropbr_dist.training.sharing import check_sharing, groups_of, place_of

MOST_PIXELS_REPLAYED = 2**21
"""In a micro-batch: with more, kernels take far longer than it takes to launch them, and a recording's memory is kept."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


@dataclass(frozen=True, kw_only=True)
class SampleFacts:
    """Facts that a set-up needs of the samples."""

    side: int
    """Side of every picture in pixels."""
    train: int = 0
    """Samples in the training set."""
    val: int = 0
    """Samples held out."""
    data: DataConfig | None = None
    """The configuration's `data`, with what it left open filled in by what was found; None: as configured."""
    align: Align = "none"
    """Meaning of `model.align = auto` with these samples."""
    described: str = ""
    """Place that the samples come from, in full."""

    @classmethod
    def of(cls, samples: Samples) -> SampleFacts:
        """Return the facts of an opened set."""
        return cls(
            side=samples.source.size, train=len(samples.train), val=len(samples.val), data=samples.data,
            align=samples.align, described=samples.described,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A start of a run as a value: nothing of it changes, and nobody asks again."""

    cfg: TrainConfig
    """Frozen, with nothing left open: a run of one stage saves it (of several, see `training.stages`)."""
    env: Environment
    device: torch.device
    samples: SampleFacts
    precision: str
    """Compute precision: bf16, fp16 or fp32."""
    micro: MicroBatching
    """A rank's cut of its share of the global batch."""
    networks: Mapping[str, NetworkSetup]
    """Choices of each network: `generator` and, with a GAN, `discriminator`."""
    need: Need
    """Memory that the run asks of a rank."""
    memory: str
    """The memory plan: fast, balanced or low."""
    memory_why: str
    """Reason for this plan, where `training.memory` leaves it open; else empty."""
    graphs_why_not: str | None
    """Reason why what a step launches is not recorded as a CUDA graph; None where it is."""

    @property
    def engine(self) -> str:
        """The generator's engine."""
        return self.networks["generator"].engine

    @property
    def sample_ranks(self) -> int:
        """Ranks that share each sample."""
        return self.cfg.training.sample_ranks

    @property
    def data_place(self) -> tuple[int, int]:
        """Groups of ranks that share a sample, which take samples as ranks would, and the one that this rank is in."""
        return place_of(self.env, self.sample_ranks)

    @property
    def needs_process_group(self) -> bool:
        """Whether torch.distributed must be up; a single process needs it for any engine but `single`."""
        return self.env.distributed or any(net.engine != "single" for net in self.networks.values())

    @property
    def compile(self) -> str:
        """`training.compile` resolved: `blocks` or `off`."""
        return "blocks" if self.networks["generator"].compile_blocks else "off"

    @property
    def replays(self) -> bool:
        """Whether all that a step launches is recorded as one CUDA graph and replayed."""
        return self.graphs_why_not is None

    @property
    def compile_losses(self) -> bool:
        """Whether losses are compiled: where networks are, on a GPU. A CPU's compiler takes minutes over them."""
        return self.compile == "blocks" and self.device.type == "cuda"

    @property
    def recompute(self) -> str:
        """Recomputation in backward, for a person: `memory plan fast`, or `activation checkpointing full`."""
        kind = self.cfg.training.activation_checkpointing
        return f"memory plan {self.memory}" if kind == "plan" else f"activation checkpointing {kind}"

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Parameters of each network, counted whole."""
        return count_parameters(self.cfg.model)


def set_up(
    cfg: TrainConfig, env: Environment, device: torch.device, samples: SampleFacts, room: int | None = None
) -> Setup:
    """Return every choice of a run, made. Says nothing, writes nothing and asks no other rank.

    Args:
        cfg: checked (`config.resolve`), of one stage (`config.as_one_stage`); it stays as it is.
        device: this rank's.
        room: bytes of memory that each rank has. None: nothing is held against it, and
            `training.memory = auto` means low.

    Raises:
        UserError: engines, a DeepSpeed file, a batch or pictures that can't be, or pictures too large for `room`.
    """
    cfg = filled_in(cfg, env, samples)
    t = cfg.training
    check_size(samples.side, size_multiple(cfg.model))
    check_discriminator(cfg.model, samples.side)
    check_sharing(cfg.model, env.world_size, t.sample_ranks, samples.side)
    groups = groups_of(env.world_size, t.sample_ranks)
    check_even_batch_norm(cfg, groups)
    precision = choose_precision(t.precision, device)
    micro = micro_batches(t.global_batch_size or 1, groups, t.batch_size, t.sample_ranks)
    spread = {"generator": network_setup(cfg, env, device, precision, micro, "generator")}
    if cfg.model.use_gan:
        spread["discriminator"] = network_setup(cfg, env, device, precision, micro, "discriminator")
    g = spread["generator"]
    need = Need(cfg, g.dtype or torch.float32, g.engine, g.zero_stage, env.world_size)
    memory, why = choose_plan(need, samples.side, room, device.type)
    networks = {
        part: replace(net, recompute=recompute_patterns(memory, t.activation_checkpointing, part))
        for part, net in spread.items()
    }
    graphs_why_not = why_not_replayed(cfg, networks.values(), micro, samples.side, device)
    networks = {part: replace(net, replayed=graphs_why_not is None) for part, net in networks.items()}
    return Setup(
        cfg=cfg, env=env, device=device, samples=samples, precision=precision, micro=micro,
        networks=MappingProxyType(networks), need=need, memory=memory, memory_why=why, graphs_why_not=graphs_why_not,
    )  # fmt: skip


def filled_in(cfg: TrainConfig, env: Environment, samples: SampleFacts) -> TrainConfig:
    """Return `cfg` with what it leaves open filled in, so that a resume takes the same.

    Raises:
        UserError: more ranks share a sample than can; or the discriminator is to see views that aren't rectified.
    """
    t = cfg.training
    for stage in stages_of(cfg):
        check_sharing(cfg.model, env.world_size, stage.sample_ranks)
    open_fields: dict[str, dict[str, Any]] = {"training": {}, "optimizer": {}, "model": {}}
    if t.stages:
        open_fields["training"]["stages"] = [
            replace(s, global_batch_size=batch_of(s, env.world_size)) for s in t.stages
        ]
    elif t.global_batch_size is None:
        open_fields["training"]["global_batch_size"] = t.batch_size * groups_of(
            env.world_size, t.sample_ranks
        )
    if cfg.optimizer.scheduler_epochs is None:
        open_fields["optimizer"]["scheduler_epochs"] = t.epochs
    if cfg.model.encoder_type != "resnet":
        open_fields["model"]["encoder_pretrained"] = False
    if cfg.model.align == "auto":
        open_fields["model"]["align"] = samples.align
    cfg = with_fields(cfg, **open_fields)
    check_judged(cfg.model)
    cfg = with_fields(replace(cfg, model=settled(cfg.model)), transform=settled_stats(cfg))
    cfg = cfg if samples.data is None else with_fields(replace(cfg, data=samples.data))
    check_mixtures(cfg)
    return cfg


def batch_of(stage: Stage, world: int) -> int:
    """Return a stage's global batch on `world` ranks where it is still open."""
    return stage.global_batch_size or stage.batch_size * groups_of(world, stage.sample_ranks)


# -- one network ---------------------------------------------------------------------------


def network_setup(
    cfg: TrainConfig, env: Environment, device: torch.device, precision: str, micro: MicroBatching, part: str
) -> NetworkSetup:
    """Return how one network is spread, computed and optimised; without what is computed again."""
    t, o, is_g = cfg.training, cfg.optimizer, part == "generator"
    engine, file = choose_engine(cfg, env, part)
    betas = o.g_betas if is_g else o.d_betas
    norms = (cfg.model.norm, cfg.model.encoder_norm if is_g else cfg.model.norm)
    ds_config = None
    if file is not None:
        ds_config = resolve_deepspeed(
            file, global_batch=t.global_batch_size or 1, micro_batch=micro.size, accumulation=micro.per_step,
            world_size=env.world_size, clip=t.grad_clip_norm, precision=precision,
        )  # fmt: skip
    adam = Adam(
        lr=o.g_lr if is_g else o.d_lr, betas=(betas[0], betas[1]),
        weight_decay=o.g_weight_decay if is_g else o.d_weight_decay, eps=o.eps,
    )  # fmt: skip
    return NetworkSetup(
        engine=engine, adam=adam, clip=t.grad_clip_norm, dtype=DTYPES[precision],
        compile_blocks=t.compile == "blocks" or (t.compile == "auto" and device.type == "cuda"),
        sync_batch="sync_batch" in norms, shard=t.shard, ranks_per_node=env.local_world_size,
        cpu_offload=t.cpu_offload and is_g, ds_file=file, ds_config=ds_config,
    )  # fmt: skip


def choose_engine(cfg: TrainConfig, env: Environment, part: str) -> tuple[str, str | None]:
    """Return a network's engine, with `auto` and `same` resolved, and its DeepSpeed file, if it has one."""
    t, name, flag = cfg.training, "training.engine", "--ds"
    engine, file = t.engine, t.ds_config
    if part == "discriminator" and t.engine_discriminator != "same":
        name, flag = "training.engine_discriminator", "--ds-discriminator"
        engine, file = t.engine_discriminator, t.ds_config_discriminator or t.ds_config
    if engine == "single" and env.world_size > 1:
        raise UserError(f"{name} = single with {env.world_size} ranks; use fsdp, ddp or deepspeed")
    if engine == "deepspeed" and file is None:
        raise UserError(f"{name} = deepspeed needs {flag} FILE (zero2, say)")
    if engine == "auto":
        engine = "deepspeed" if file is not None else "fsdp" if env.world_size > 1 else "single"
    if engine != "deepspeed":
        return engine, None
    return engine, (t.ds_config_discriminator if part == "discriminator" else None) or file


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return `training.precision`, with `auto` resolved to the best that the device has."""
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def why_not_replayed(
    cfg: TrainConfig, networks: Iterable[NetworkSetup], micro: MicroBatching, side: int, device: torch.device
) -> str | None:
    """Return why what a step launches is not recorded as a CUDA graph; None where it is.

    Random numbers and batch statistics would be those of the recording, recomputation asks for the generator's state on
    the host, and a loss that isn't ours may ask the host for anything.
    """
    engines = ("single", "ddp") if cfg.training.cuda_graphs == "on" else ("single",)
    batch_norm = {"batch", "sync_batch"} & {cfg.model.norm, cfg.model.encoder_norm}
    obstacles = {
        f"the device is {device.type}": device.type != "cuda",
        "training.cuda_graphs = off": cfg.training.cuda_graphs == "off",
        **{f"the engine is {net.engine}": net.engine not in engines for net in networks},
        "ranks share samples": cfg.training.sample_ranks > 1,
        "activations are recomputed": any(net.recompute for net in networks),
        "gradients are accumulated": micro.per_step > 1,
        "there is a custom loss": bool(cfg.loss.custom),
        "the network has dropout": has_dropout(cfg.model),
        "the network has batch norm": bool(batch_norm),
        f"a micro-batch has more than {MOST_PIXELS_REPLAYED:,} pixels": micro.size * side**2
        > MOST_PIXELS_REPLAYED,
    }
    return next((why for why, there in obstacles.items() if there), None)


def has_dropout(model: ModelConfig) -> bool:
    """Return whether a forward pass draws random numbers."""
    return model.transformer_attn_drop + model.transformer_proj_drop + model.transformer_drop_path_rate > 0


# -- what can't be -------------------------------------------------------------------------


def check_discriminator(model: ModelConfig, size: int) -> None:
    """Raise a UserError where the discriminator has no patch to judge in pictures of `size` px."""
    needed = smallest_side(model.discriminator_n_layers)
    if model.use_gan and size < needed:
        raise UserError(
            f"model.discriminator_n_layers = {model.discriminator_n_layers} needs pictures of {needed} px or more, "
            f"but they are {size} px; lower it ({smallest_side(3)} px are enough for 3) or raise data.image_size"
        )


def check_even_batch_norm(cfg: TrainConfig, world_size: int) -> None:
    """Raise a UserError where a short rank's filler samples would count in batch statistics."""
    m, batch = cfg.model, cfg.training.global_batch_size or 1
    for name, kind in (("norm", m.norm), ("encoder_norm", m.encoder_norm)):
        if kind in ("batch", "sync_batch") and batch % world_size:
            raise UserError(
                f"model.{name} = {kind} with training.global_batch_size = {batch} on {world_size} ranks: "
                "every rank needs as many samples; change one of the three"
            )
