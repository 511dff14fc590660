"""A small GAN trained by `gan_step` on any engine, to be held against `tests.support.plain_loop`.

`Case` says what is trained, `Row` how. All functions that take a `Row` run on
every rank of its world.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from neuropbr_dist.config import LossConfig, TrainConfig, TransformConfig
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.data.device import to_device
from neuropbr_dist.data.keyed import uniforms
from neuropbr_dist.data.load import load_batch
from neuropbr_dist.data.order import SampleOrder, Slot, micro_batches, step_micro_batches
from neuropbr_dist.data.rendered.materials import Materials
from neuropbr_dist.data.rendered.source import RenderedSource
from neuropbr_dist.materials.relighting import relighting
from neuropbr_dist.models import Discriminator, Generator, Judgement
from neuropbr_dist.models.generator import freeze_backbone
from neuropbr_dist.objectives.rendering import relit, square_of
from neuropbr_dist.parallel import Adam, Network, NetworkSetup, build_network, change_network
from neuropbr_dist.parallel.network import StepResult
from neuropbr_dist.parallel.strips import strip_of
from neuropbr_dist.ranks import all_gather_object
from neuropbr_dist.strip import Strip
from neuropbr_dist.training.objective import Objective
from neuropbr_dist.training.step import gan_step
from tests.support.material_files import random_normals
from tests.support.tiny import tiny_model

# eps as large as the moments' roots: a tiny one makes Adam blind to the gradients' scale.
ADAM = Adam(lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-2, eps=1e-3)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained."""

    steps: int = 6
    batch: int = 4
    """Samples of the global batch."""
    side: int = 16
    depth: int = 2
    """Transformer blocks."""
    heads: int = 2
    width: int = 16
    """Of a token."""
    d_layers: int = 2
    seed: int = 3
    """Of the first weights."""
    smooth: bool = True
    """Smooth losses and activations: one ulp flips a kink of L1 or LeakyReLU (measured)."""
    double: bool = False
    d_steps: int = 1
    plane: bool = False
    """Rectified views with masks, one view of every other sample missing; skips by mean, maximum and variance."""
    rendered: bool = False
    """Views rendered of maps alone, which are changed, mixed and cut; with `plane`."""
    resnet: bool = False
    """A ResNet-18 as encoder: eleven million parameters."""
    frozen_encoder: bool = False
    """As `model.freeze_backbone` does, on any encoder."""
    norm: str = "group"
    judges_views: bool = False
    """A discriminator with spectral norms that sees the views as well; with `plane`."""
    clip: float = 0.5
    w_maps: float = 1.0
    """Weight of the generator's reconstruction loss."""
    w_render: float = 0.0
    w_gan: float = 0.3
    w_d: float = 1.0
    w_features: float = 0.0
    """Weight of feature matching; the discriminator hands out its features where it has one."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """How: one engine at one world size."""

    engine: str
    world: int = 2
    accumulation: int = 1
    recompute: str = "none"
    stage: int = 0
    shard: str = "world"
    offload: bool = False
    compile: bool = False
    at_once: bool = False
    """DDP averages gradients after the backward."""
    engine_d: str = ""
    """The discriminator's engine, if it is another."""
    persist: int = 0
    """ZeRO-3 keeps parameters of fewer elements whole on every rank."""
    bf16: bool = False
    device: str = "cpu"
    sample_ranks: int = 1

    @property
    def strip(self) -> Strip | None:
        """This rank's of its samples."""
        return made_strip(self.sample_ranks)

    def __str__(self) -> str:
        name = f"ZeRO-{self.stage}" if self.engine == "deepspeed" else self.engine
        name = "HSDP" if self.shard == "node" else name
        notes = [f"{name} x{self.world}", f"accumulation {self.accumulation}", f"recompute {self.recompute}"]
        notes += ["offload"] * self.offload + ["compile"] * self.compile + ["averaged at once"] * self.at_once
        notes += [f"D on {self.engine_d}"] * bool(self.engine_d)
        notes += ["small parameters kept"] * bool(self.persist) + ["bf16"] * self.bf16
        notes += [f"{self.sample_ranks} ranks a sample"] * (self.sample_ranks > 1)
        return ", ".join(notes)


ENGINES = {
    "single": Row(engine="single", world=1),
    "ddp": Row(engine="ddp"),
    "fsdp": Row(engine="fsdp"),
    **{f"zero{stage}": Row(engine="deepspeed", stage=stage) for stage in range(4)},
}


@cache
def made_strip(sample_ranks: int) -> Strip | None:
    """Groups stay as long as this process, which knows one world."""
    return strip_of(sample_ranks)


# -- what is trained -----------------------------------------------------------------------


def config(case: Case) -> TrainConfig:
    cfg = TrainConfig()
    cfg.model = tiny_model(
        encoder_type="resnet" if case.resnet else "unet",
        encoder_backbone="resnet18",
        align="plane" if case.plane else "none",
        skip_merge="max_mean_var" if case.plane else "mean",
        token_embedding="view" if case.plane else "none",
        norm=case.norm,
        encoder_norm=case.norm,
        transformer_dim=case.width,
        transformer_num_heads=case.heads,
        transformer_depth=case.depth,
        transformer_mlp_ratio=2,
        discriminator_n_layers=case.d_layers,
        discriminator_ndf=8,
        discriminator_norm="spectral" if case.judges_views else "same",
        discriminator_input="maps_and_views" if case.judges_views else "maps",
    )
    cfg.loss = LossConfig(
        w_render=case.w_render, w_gan=case.w_gan, w_discriminator=case.w_d, w_feature_matching=case.w_features
    )
    return cfg


def models(case: Case) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator, the same at every call."""
    torch.manual_seed(case.seed)
    cfg = config(case)
    built = [Generator(cfg.model), Discriminator(cfg.model, with_features=case.w_features > 0)]
    if case.frozen_encoder:
        freeze_backbone(built[0].encoder)  # type: ignore[arg-type]
    for net in built:
        if case.smooth:
            smooth_activations(net)
        net.to(torch.float64 if case.double else torch.float32)
    return built[0], built[1]


def smooth_activations(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU | nn.LeakyReLU):
            setattr(module, name, nn.SiLU())
        elif isinstance(child, nn.MaxPool2d) and child.kernel_size == 2:
            setattr(module, name, nn.AvgPool2d(2))
        else:
            smooth_activations(child)


class WeighedObjective(Objective):
    """The generator's reconstruction loss with a weight."""

    def __init__(self, case: Case, strip: Strip | None = None) -> None:
        super().__init__(config(case), strip=strip)
        self.case = case

    def reconstruction(self, fake: Tensor, batch: DeviceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        total, terms = super().reconstruction(fake, batch)
        return self.case.w_maps * total, terms


class SmoothObjective(WeighedObjective):
    """Squared errors and cross-entropy in place of L1, SSIM and hinge."""

    def __init__(self, case: Case, strip: Strip | None = None) -> None:
        super().__init__(case, strip)
        self.kind, self.feature_matching = "bce", squared_matching

    def reconstruction(self, fake: Tensor, batch: DeviceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        total = (fake - batch.maps).square().mean((1, 2, 3))
        if batch.relighting is not None:
            lamps, eyes, corners = batch.relighting
            ours, theirs = (
                relit(square_of(maps, corners, self.strip), lamps, eyes) for maps in (fake, batch.maps)
            )
            total = total + self.case.w_render * (ours - theirs).square().mean((1, 2, 3, 4))
        total = total if self.strip is None else total / self.strip.count
        return self.case.w_maps * (total * batch.weight).sum(), {}


def squared_matching(fake: Sequence[Tensor], true: Sequence[Tensor], strip: Strip | None = None) -> Tensor:
    """`feature_matching_loss` of squared differences."""
    parts = [
        (ours - theirs.detach()).square().mean((1, 2, 3)) * (1.0 if strip is None else strip.share(ours))
        for ours, theirs in zip(fake, true, strict=True)
    ]
    return torch.stack(parts).mean(0)


def objective(case: Case, strip: Strip | None = None) -> Objective:
    return SmoothObjective(case, strip) if case.smooth else WeighedObjective(case, strip)


@cache
def samples(case: Case) -> tuple[Tensor, Tensor]:
    """Views and maps of every sample of the run. Dark, leaning maps: gradients that don't cancel."""
    generator = torch.Generator().manual_seed(3)
    n = case.steps * case.batch
    dtype = torch.float64 if case.double else torch.float32
    views = torch.randn(n, 3, 3, case.side, case.side, generator=generator, dtype=torch.float64)
    maps = torch.rand(n, 8, case.side, case.side, generator=generator, dtype=torch.float64)
    maps[:, :5] *= 0.2
    maps[:, 5:] = F.normalize(maps[:, 5:] * 0.5 + torch.tensor([0.6, 0.0, 0.8])[:, None, None], dim=1)
    if case.plane:
        views = with_masks(views, generator)
    return views.float().to(dtype), maps.float().to(dtype)  # the same samples in both precisions


def with_masks(views: Tensor, generator: torch.Generator) -> Tensor:
    """(n, 3, 3, H, W) -> (n, 3, 7, H, W) as `rectify` gives them."""
    direction = F.normalize(torch.randn(views.shape, generator=generator, dtype=views.dtype), dim=2)
    mask = (torch.rand(views[:, :, :1].shape, generator=generator) > 0.1).to(views.dtype)
    mask[::2, 1] = 0
    return torch.cat([views, torch.ones_like(mask), direction], dim=2) * mask


class NoiseMaterials(Materials):
    """Maps of noise, under names."""

    def __init__(self, count: int, side: int) -> None:
        self.names, self.size = [f"noise {number}" for number in range(count)], side

    def at(self, size: int) -> NoiseMaterials:
        return NoiseMaterials(len(self.names), size)

    def maps_into(self, index: int, out: np.ndarray) -> None:
        rng = np.random.default_rng(index)
        out[:] = rng.integers(0, 256, out.shape)
        out[5:] = random_normals(self.size, rng).transpose(2, 0, 1)


@cache
def rendered_source(case: Case) -> RenderedSource:
    """Every sample of the run: two repeats of each material."""
    return RenderedSource(NoiseMaterials(case.steps * case.batch // 2, case.side), 2, 0, seed=case.seed)


def rendered_batch(case: Case, slots: Sequence[Slot], device: str, strip: Strip | None = None) -> DeviceBatch:
    """Samples as a run loads and renders them, in float32 whatever the networks compute in."""
    source = rendered_source(case)
    augmentation = Augmentation(
        3, True, True, crop=0.3, tint=0.2, roughness_shift=0.1, any_roughness=0.4, relief=0.5, other_relief=0.3, mixtures=0.4
    )  # fmt: skip
    alignment = Alignment(min_confidence=0.5, seed=3, ignore_wrap=0.5, drop_views=0.3, jitter=0.008)
    relight = 3 if case.w_render else None
    rows = None if strip is None else strip.rows(case.side)
    host = load_batch(source, source.entries, slots, augmentation, alignment, relight, rows)
    views, maps, weight, lamps = to_device(host, case.batch, TransformConfig(), torch.device(device))
    if not case.double:
        return DeviceBatch(views, maps, weight, lamps)
    wide = None if lamps is None else lamps._replace(lamps=lamps.lamps.double(), eyes=lamps.eyes.double())
    return DeviceBatch(views.double(), maps.double(), weight.double(), wide)


def sample_order(case: Case) -> SampleOrder:
    return SampleOrder(n=case.steps * case.batch, global_batch=case.batch, epochs=1, seed=0)


def global_batch(case: Case, step: int, device: str) -> DeviceBatch:
    """The whole batch of a step."""
    places = sample_order(case).indices(step * case.batch, case.batch)
    return device_batch(case, [Slot(*place, 1.0) for place in places], device)


def device_batch(case: Case, slots: Sequence[Slot], device: str, strip: Strip | None = None) -> DeviceBatch:
    """Some of the run's samples, each with its weight in a mean over the global batch; with `strip` its rows."""
    if case.rendered:
        return rendered_batch(case, slots, device, strip)
    views, maps = (x[[slot.index for slot in slots]].to(device) for x in samples(case))
    if strip is not None:
        views, maps = (x[..., slice(*strip.rows(case.side)), :] for x in (views, maps))
    weight = torch.tensor([slot.weight for slot in slots], dtype=views.dtype, device=device) / case.batch
    lamps = None
    if case.w_render:
        drawn = relighting([uniforms(str(slot.index)) for slot in slots])
        lamps = drawn._replace(lamps=drawn.lamps.to(maps), eyes=drawn.eyes.to(maps))
    return DeviceBatch(views, maps, weight, lamps)


# -- how it is trained ---------------------------------------------------------------------


def largest_micro_batch(case: Case, row: Row) -> int:
    """`training.batch_size` that makes the row's accumulation."""
    return -(-case.batch // (row.world // row.sample_ranks)) // row.accumulation


def rank_batch(case: Case, row: Row, step: int) -> list[DeviceBatch]:
    """This rank's micro-batches of a step."""
    rank = dist.get_rank() if row.world > 1 else 0
    groups, group = row.world // row.sample_ranks, rank // row.sample_ranks
    cut = step_micro_batches(
        sample_order(case), step * case.batch, groups, group, largest_micro_batch(case, row)
    )
    micros = [device_batch(case, slots, row.device, row.strip) for slots in cut]
    assert len(micros) == row.accumulation
    return micros


def ds_config(case: Case, row: Row) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": row.stage, "stage3_param_persistence_threshold": row.persist}
    zero |= {"memory_efficient_linear": False} if row.stage == 3 else {}
    if row.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if row.stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    micro = micro_batches(case.batch, row.world // row.sample_ranks, largest_micro_batch(case, row))
    return {
        "train_batch_size": micro.size * micro.per_step * row.world,
        "train_micro_batch_size_per_gpu": micro.size,
        "gradient_accumulation_steps": micro.per_step,
        "gradient_clipping": case.clip,
        "zero_optimization": zero,
        "bf16": {"enabled": row.bf16},
        "communication_data_type": "fp32",
        "zero_force_ds_cpu_optimizer": False,
    }


def setup_of(case: Case, row: Row, engine: str) -> NetworkSetup:
    """How a network of the row is spread and computed on its engine."""
    return NetworkSetup(
        engine=engine,
        adam=ADAM,
        clip=case.clip,
        dtype=torch.bfloat16 if row.bf16 else None,
        recompute=row.recompute,
        compile_blocks=row.compile,
        replayed=row.at_once,
        sync_batch=case.norm == "sync_batch",
        shard=row.shard,
        ranks_per_node=2,
        cpu_offload=row.offload and engine == "fsdp",
        ds_config=ds_config(case, row) if engine == "deepspeed" else None,
    )


def engines_of(row: Row) -> tuple[str, str]:
    """The generator's and the discriminator's."""
    return row.engine, row.engine_d or row.engine


def networks(case: Case, row: Row) -> tuple[Network, Network]:
    g, d = (
        build_network(net, torch.device(row.device), setup_of(case, row, engine), row.strip)
        for net, engine in zip(models(case), engines_of(row), strict=True)
    )
    return g, d


def train_row(case: Case, row: Row) -> dict[str, Any]:
    """Train; every step's losses and gradient norms, and on rank 0 the whole state."""
    return train_stages([(case, row)])


def train_stages(stages: Sequence[tuple[Case, Row]]) -> dict[str, Any]:
    """The same, of cases that are trained one after another, each in its way, with the networks of the first."""
    nets, records, before = networks(*stages[0]), [], stages[0]
    for case, row in stages:
        for net, engine in zip(nets, engines_of(row), strict=True) if before != (case, row) else ():
            change_network(net, setup_of(*before, engine), setup_of(case, row, engine), row.strip)
        before, goal = (case, row), objective(case, row.strip)
        for step in range(case.steps):
            result = gan_step(*nets, rank_batch(case, row, step), goal, d_steps=case.d_steps)
            assert result.discriminator is not None
            records.append(
                {
                    "G_loss": over_ranks(result.losses["G_loss"]),
                    "D_loss": over_ranks(result.losses["D_loss"]),
                    "G_norm": norm_of(result.generator),
                    "D_norm": norm_of(result.discriminator),
                }
            )
    return {"state": whole_state(*nets), "records": records}


def over_ranks(part: Tensor) -> float:
    """Sum of the ranks' parts."""
    return sum(all_gather_object(float(part)))


def norm_of(result: StepResult) -> float:
    assert bool(result.finite)
    return float(result.grad_norm)


def whole_state(g: Network, d: Network, *, buffers: bool = False) -> dict[str, Tensor]:
    """All ranks' shards put together on rank 0; {} elsewhere."""
    return put_together(
        (f"{part}/{shard.name}", shard.data, shard.start, shard.shape)
        for part, net in (("generator", g), ("discriminator", d))
        for shard in net.fragments()
        if buffers or not shard.name.startswith("buffer/")
    )


def put_together(pieces: Iterable[tuple[str, Tensor, int, torch.Size]]) -> dict[str, Tensor]:
    """Whole tensors of all ranks' (name, data, start, shape) on rank 0, which overlap with the same bits."""
    mine = [(name, data.cpu(), start, shape) for name, data, start, shape in pieces]
    flat: dict[str, Tensor] = {}
    shapes = {}
    for name, data, start, shape in on_rank_0(mine):
        shapes[name] = shape
        whole = flat.setdefault(name, torch.full((shape.numel(),), float("nan"), dtype=torch.float64))
        place = whole[start : start + data.numel()]
        known = ~place.isnan()
        assert torch.equal(place[known], data[known].double()), f"{name}: ranks differ"
        place.copy_(data)
    return {name: flat[name].view(shapes[name]) for name in flat}


def on_rank_0(mine: list[Any]) -> list[Any]:
    """All ranks' lists, one after another, on rank 0; [] elsewhere."""
    if not dist.is_initialized():
        return mine
    found: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, found)
    return [piece for pieces in found or [] for piece in pieces]


# -- how far apart -------------------------------------------------------------------------


def differences(found: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """max|Δ| / max|reference| of every tensor and of every column of the records."""
    assert found["state"].keys() == reference["state"].keys()
    pairs = {name: (found["state"][name], ref) for name, ref in reference["state"].items()}
    for column in reference["records"][0]:
        mine, theirs = (
            torch.tensor([record[column] for record in run["records"]], dtype=torch.float64)
            for run in (found, reference)
        )
        pairs[column] = mine, theirs
    return {name: relative(a, b) for name, (a, b) in pairs.items()}


def relative(found: Tensor, reference: Tensor) -> float:
    """max|Δ| / max|reference|; inf if anything is not a number."""
    difference, scale = (found - reference).abs().max(), reference.abs().max()
    ratio = float(difference / scale) if scale > 0 else float(difference)
    return ratio if ratio == ratio else float("inf")


def worst(found: dict[str, Any], reference: dict[str, Any]) -> float:
    return max(differences(found, reference).values())


def update_error(found: dict[str, Tensor], reference: dict[str, Tensor], case: Case) -> float:
    """|found - reference| / |reference - start|, Euclidean, over all parameters of both networks."""
    off, moved = 0.0, 0.0
    for part, net in zip(("generator", "discriminator"), models(case), strict=True):
        for name, start in net.named_parameters():
            ours, theirs = found[f"{part}/param/{name}"], reference[f"{part}/param/{name}"]
            off += float((ours - theirs).square().sum())
            moved += float((theirs - start.detach().double()).square().sum())
    return (off / moved) ** 0.5


class Poisoned(SmoothObjective):
    """NaN in one network's loss, on this rank."""

    def __init__(self, case: Case, part: str) -> None:
        super().__init__(case)
        self.part = part

    def reconstruction(self, fake: Tensor, batch: DeviceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = super().reconstruction(fake, batch)
        return loss * (math.nan if self.part == "generator" else 1.0), terms

    def discriminator(self, real: Judgement, fake: Judgement, weight: Tensor) -> Tensor:
        loss = super().discriminator(real, fake, weight)
        return loss * (math.nan if self.part == "discriminator" else 1.0)
