"""A small GAN trained by `gan_step` on any engine, and by a plain loop, from the same start."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from neuropbr_dist.config import LossConfig, ModelConfig, TrainConfig
from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.data.order import SampleOrder, micro_batches, plan_step
from neuropbr_dist.models import Discriminator, Generator
from neuropbr_dist.parallel import Adam, Network, Plan, build_network
from neuropbr_dist.training.objective import Objective
from neuropbr_dist.training.step import gan_step

GLOBAL_BATCH, SIDE, CLIP = 4, 16, 0.5


@dataclass(frozen=True)
class Case:
    """What is trained; how is in `Row`."""

    steps: int = 6
    smooth: bool = True
    """Smooth losses and activations: one ulp flips a kink of L1 or LeakyReLU (measured)."""
    double: bool = False
    d_steps: int = 1
    freeze_backbone: bool = False
    norm: str = "group"
    gan_from: int = 0


@dataclass(frozen=True)
class Row:
    """One engine at one world size."""

    engine: str
    world: int
    accumulation: int = 1
    recompute: str = "none"
    stage: int = 0
    shard: str = "world"
    offload: bool = False
    compile: bool = False
    engine_d: str = ""

    @property
    def label(self) -> str:
        name = f"ZeRO-{self.stage}" if self.engine == "deepspeed" else self.engine
        name = "HSDP" if self.shard == "node" else name
        extras = [f"×{self.world}", f"acc {self.accumulation}", f"recompute {self.recompute}"]
        extras += ["offload"] * self.offload + ["compile"] * self.compile
        extras += [f"D {self.engine_d}"] * bool(self.engine_d)
        return f"{name} " + ", ".join(extras)


def config(case: Case) -> TrainConfig:
    cfg = TrainConfig()
    cfg.model = ModelConfig(
        encoder_type="resnet" if case.freeze_backbone else "unet",
        encoder_backbone="resnet18",
        encoder_channels=[8, 16],
        encoder_pretrained=False,
        freeze_backbone=case.freeze_backbone,
        norm=case.norm,  # type: ignore[arg-type]
        encoder_norm=case.norm,  # type: ignore[arg-type]
        transformer_dim=16,
        transformer_num_heads=2,
        transformer_depth=2,
        transformer_mlp_ratio=2,
        discriminator_n_layers=2,
        discriminator_ndf=8,
    )
    cfg.loss = LossConfig(w_gan=0.3)
    return cfg


def models(case: Case) -> tuple[Generator, Discriminator]:
    torch.manual_seed(7)
    cfg = config(case)
    g, d = Generator(cfg.model), Discriminator(cfg.model)
    if case.smooth:
        smooth_activations(g)
        smooth_activations(d)
    return (g.double(), d.double()) if case.double else (g, d)


def smooth_activations(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU | nn.LeakyReLU):
            setattr(module, name, nn.SiLU())
        elif isinstance(child, nn.MaxPool2d) and child.kernel_size == 2:
            setattr(module, name, nn.AvgPool2d(2))
        else:
            smooth_activations(child)


def samples(case: Case) -> tuple[Tensor, Tensor]:
    """Views and maps of every sample of the run, in order."""
    generator = torch.Generator().manual_seed(3)
    n = case.steps * GLOBAL_BATCH
    dtype = torch.float64 if case.double else torch.float32
    views = torch.randn(n, 3, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    maps = torch.rand(n, 8, SIDE, SIDE, generator=generator, dtype=torch.float64)
    maps[:, 5:] = F.normalize(maps[:, 5:] * 2 - 1, dim=1)
    return views.to(dtype), maps.to(dtype)


class SmoothObjective(Objective):
    """Squared error and cross-entropy in place of L1, SSIM and hinge."""

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__(cfg)
        self.kind = "bce"

    def reconstruction(self, fake: Tensor, maps: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return ((fake - maps).square().mean((1, 2, 3)) * weight).sum(), {}


def objective(case: Case) -> Objective:
    return SmoothObjective(config(case)) if case.smooth else Objective(config(case))


ADAM = Adam(lr=1e-3, betas=(0.5, 0.999), weight_decay=1e-2, eps=1e-3)


def train_plain(case: Case) -> dict[str, Any]:
    """The reference: plain PyTorch, one process, the whole batch at once, no code of parallel/."""
    g, d = models(case)
    views, maps = samples(case)
    goal = objective(case)
    opts = []
    for net in (g, d):
        trained = [p for p in net.parameters() if p.requires_grad]
        opts.append(
            torch.optim.AdamW(
                trained, lr=ADAM.lr, betas=ADAM.betas, eps=ADAM.eps, weight_decay=ADAM.weight_decay
            )
        )
    g_opt, d_opt = opts
    weight = torch.full((GLOBAL_BATCH,), 1 / GLOBAL_BATCH, dtype=views.dtype)
    losses = []

    def update(net: nn.Module, opt: torch.optim.Optimizer, grads: dict) -> None:
        for p, grad in grads.items():
            p.grad = grad
        torch.nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], CLIP)
        opt.step()
        opt.zero_grad()

    def gradients(loss: Tensor, net: nn.Module) -> dict:
        trained = [p for p in net.parameters() if p.requires_grad]
        return dict(zip(trained, torch.autograd.grad(loss, trained, retain_graph=True), strict=True))

    for step in range(case.steps):
        take = slice(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)
        x, y = views[take], maps[take]
        gan_on = step >= case.gan_from
        for _ in range(case.d_steps - 1 if gan_on else 0):
            with torch.no_grad():
                fake = g(x)
            update(d, d_opt, gradients(goal.discriminator(d(y), d(fake), weight), d))
        fake = g(x)
        g_loss, _ = goal.reconstruction(fake, y, weight)
        if gan_on:
            d_loss = goal.discriminator(d(y), d(fake.detach()), weight)
            g_loss = g_loss + goal.w_gan * goal.generator(d(fake), weight)
            d_grads = gradients(d_loss, d)
        g_grads = gradients(g_loss, g)
        if gan_on:
            update(d, d_opt, d_grads)
        update(g, g_opt, g_grads)
        losses.append(float(g_loss))
    state = {f"generator/{k}": v for k, v in plain_state(g, g_opt).items()}
    state |= {f"discriminator/{k}": v for k, v in plain_state(d, d_opt).items()}
    return {"state": state, "losses": losses}


def plain_state(net: nn.Module, opt: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = {}
    for name, p in net.named_parameters():
        state[f"param/{name}"] = p.detach()
        for key in ("exp_avg", "exp_avg_sq"):
            if p.requires_grad:
                state[f"{key}/{name}"] = opt.state[p][key] if p in opt.state else torch.zeros_like(p)
    return state


def ds_config(row: Row) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": row.stage, "stage3_param_persistence_threshold": 0}
    if row.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if row.stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    micro = micro_batches(GLOBAL_BATCH, row.world, GLOBAL_BATCH // row.world // row.accumulation or 1)
    return {
        "train_batch_size": micro.size * micro.per_step * row.world,
        "train_micro_batch_size_per_gpu": micro.size,
        "gradient_accumulation_steps": micro.per_step,
        "gradient_clipping": CLIP,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
    }


def networks(case: Case, row: Row) -> tuple[Network, Network]:
    built = []
    for net, engine in zip(models(case), (row.engine, row.engine_d or row.engine), strict=True):
        plan = Plan(
            engine=engine, adam=ADAM, clip=CLIP, dtype=None, recompute=row.recompute,
            compile_blocks=row.compile, sync_batch=case.norm == "sync_batch", shard=row.shard,
            ranks_per_node=2, cpu_offload=row.offload and engine == "fsdp",
            ds_config=ds_config(row) if engine == "deepspeed" else None,
        )  # fmt: skip
        built.append(build_network(net, torch.device("cpu"), plan))
    return built[0], built[1]


def micro_batches_of(case: Case, row: Row, step: int, rank: int) -> list[DeviceBatch]:
    views, maps = samples(case)
    order = SampleOrder(n=len(views), global_batch=GLOBAL_BATCH, epochs=1, seed=0)
    order._permutations[0] = torch.arange(len(views)).numpy()  # the reference takes samples in order
    limit = -(-GLOBAL_BATCH // row.world) // row.accumulation or 1
    batches = []
    for slots in plan_step(order, step * GLOBAL_BATCH, row.world, rank, limit):
        chosen = [slot.index for slot in slots]
        weight = torch.tensor([slot.weight for slot in slots], dtype=views.dtype) / GLOBAL_BATCH
        batches.append(DeviceBatch(views[chosen], maps[chosen], weight))
    return batches


def whole_state(g: Network, d: Network) -> dict[str, Tensor]:
    """All ranks' shards put together."""
    mine = [
        (f"{part}/{s.name}", s.data.cpu().clone(), s.start, s.shape)
        for part, net in (("generator", g), ("discriminator", d))
        for s in net.shards()
    ]
    gathered: list[Any] = [mine]
    if dist.is_initialized():
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
    flat: dict[str, Tensor] = {}
    shapes, seen = {}, {}
    for shards in gathered:
        for name, data, start, shape in shards:
            shapes[name] = shape
            target = flat.setdefault(
                name,
                torch.full((shape.numel(),), float("nan"), dtype=data.dtype)
                if data.is_floating_point()
                else torch.zeros(shape.numel(), dtype=data.dtype),
            )
            target[start : start + data.numel()] = data
            seen[name] = seen.get(name, 0) + data.numel()
    return {name: flat[name].view(shapes[name]) for name in flat}


def train_row(case: Case, row: Row) -> dict[str, Any] | None:
    """On every rank; the whole state comes back from rank 0."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    g, d = networks(case, row)
    losses = []
    for step in range(case.steps):
        batch = micro_batches_of(case, row, step, rank)
        gan_on = step >= case.gan_from
        report = gan_step(g, d if gan_on else None, batch, objective(case), d_steps=case.d_steps)
        loss = report.losses["G_loss"].clone()
        if dist.is_initialized() and row.engine != "single":
            dist.all_reduce(loss)
        losses.append(float(loss))
    state = whole_state(g, d)
    return {"state": state, "losses": losses} if rank == 0 else None


def largest_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Per tensor max|Δ| / max|ref|, over parameters, Adam moments and losses; buffers apart."""
    worst = max(abs(x - y) / abs(y) for x, y in zip(a["losses"], b["losses"], strict=True))
    for name, ref in b["state"].items():
        found = a["state"][name]
        scale = ref.abs().max()
        difference = (found - ref).abs().max()
        worst = max(worst, float(difference / scale) if scale > 0 else float(difference))
    return worst if worst == worst else float("inf")


__all__ = ["Case", "Row", "copy", "largest_difference", "train_plain", "train_row"]
