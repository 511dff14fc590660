"""Engines on real GPUs: do they agree, and what do they hold in memory?

    torchrun --nproc-per-node=2 benchmarks/engines.py parity --out parity.json
    torchrun --nproc-per-node=2 benchmarks/engines.py memory --out memory.json

`parity` trains a small GAN for six steps on every engine, in float32 and bf16,
and compares losses and parameters with one GPU that takes the whole batch.
`memory` builds the default preset's networks on every engine, takes one tiny
step, and compares what stays allocated with the stage's formula.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neuropbr_dist.cluster import detect, pick_device, process_group
from neuropbr_dist.config import TrainConfig, load
from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.models import Discriminator, Generator
from neuropbr_dist.parallel import Adam, Network, Plan, build_network
from neuropbr_dist.training.objective import Objective
from neuropbr_dist.training.step import gan_step

ADAM = Adam(lr=1e-3, betas=(0.5, 0.999), weight_decay=1e-4, eps=1e-3)
BATCH, SIDE, STEPS = 4, 64, 6
ENGINES = [("ddp", 0), ("fsdp", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]


def small_config() -> TrainConfig:
    """A ResNet-18 generator and the cross-entropy loss, whose slope has no kinks."""
    cfg = load("demo")
    cfg.model.encoder_type, cfg.model.encoder_backbone = "resnet", "resnet18"
    cfg.loss.gan_loss_type = "bce"
    return cfg


def plan(engine: str, stage: int, dtype: torch.dtype | None, micro: int, steps: int, compiled: bool) -> Plan:
    """How one engine is set up; `stage` is ZeRO's, `steps` the micro-batches of a step."""
    zero = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    ds = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": 1.0,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "communication_data_type": "fp32",
        "zero_force_ds_cpu_optimizer": False,
    }
    return Plan(
        engine=engine, adam=ADAM, clip=1.0, dtype=dtype, recompute="selective", compile_blocks=compiled,
        ds_config=ds if engine == "deepspeed" else None,
    )  # fmt: skip


def build(cfg: TrainConfig, device: torch.device, how: Plan) -> dict[str, Network]:
    """Both networks with the same weights everywhere, on one engine."""
    torch.manual_seed(1)
    nets = {"generator": Generator(cfg.model), "discriminator": Discriminator(cfg.model)}
    for net in nets.values():
        smooth_activations(net)
    return {part: build_network(net, device, replace(how)) for part, net in nets.items()}


def smooth_activations(module: nn.Module) -> None:
    """One ulp flips a kink of ReLU, and Adam makes much of it (measured)."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU | nn.LeakyReLU):
            setattr(module, name, nn.SiLU())
        else:
            smooth_activations(child)


class SmoothObjective(Objective):
    """Squared error in place of L1 and SSIM."""

    def reconstruction(self, fake: Tensor, maps: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return ((fake - maps).square().mean((1, 2, 3)) * weight).sum(), {}


def batch_of(step: int, share: slice, micro: int, device: torch.device) -> list[DeviceBatch]:
    """This rank's micro-batches of a global batch drawn from the step's seed."""
    g = torch.Generator().manual_seed(step)
    views = torch.randn(BATCH, 3, 3, SIDE, SIDE, generator=g)[share].to(device)
    maps = torch.rand(BATCH, 8, SIDE, SIDE, generator=g)
    maps[:, 5:] = torch.nn.functional.normalize(maps[:, 5:] * 2 - 1, dim=1)
    maps = maps[share].to(device)
    weight = torch.full((len(views),), 1 / BATCH, device=device)
    cut = range(0, len(views), micro)
    return [DeviceBatch(views[i : i + micro], maps[i : i + micro], weight[i : i + micro]) for i in cut]


def train(
    nets: dict[str, Network], cfg: TrainConfig, share: slice, micro: int, device: torch.device, sync: bool
) -> list[float]:
    """`STEPS` steps on this rank's `share` of each batch; the generator's loss of every step, over all ranks with `sync`."""
    objective, losses = SmoothObjective(cfg), []
    for step in range(STEPS):
        batch = batch_of(step, share, micro, device)
        report = gan_step(nets["generator"], nets["discriminator"], batch, objective)
        loss = report.losses["G_loss"].clone()
        if sync:
            dist.all_reduce(loss)
        losses.append(float(loss))
    return losses


def whole(nets: dict[str, Network]) -> dict[str, Tensor]:
    """Every parameter in full, put together from all ranks' shards. Collective."""
    mine = [
        (f"{part}/{s.name}", s.data.cpu(), s.start, s.shape)
        for part, net in nets.items()
        for s in net.shards()
        if s.name.startswith("param/")
    ]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    flat: dict[str, Tensor] = {}
    for shards in gathered:
        for name, data, start, shape in shards:
            flat.setdefault(name, torch.zeros(shape.numel()))[start : start + data.numel()] = data
    return flat


def largest(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Largest difference of a parameter, relative to its largest element."""
    return max(
        float((found[n] - r).abs().max() / r.abs().max().clamp(min=1e-12)) for n, r in reference.items()
    )


class Rows(list):
    """Results, written after every row: a run cut short still leaves what it measured."""

    def __init__(self, out: Path, rank: int) -> None:
        super().__init__()
        self.out, self.rank = out, rank

    def add(self, row: dict[str, Any]) -> None:
        self.append(row)
        gc.collect()
        torch.cuda.empty_cache()
        if self.rank == 0:
            facts = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "rows": self}
            self.out.write_text(json.dumps(facts, indent=1))
            print(row, flush=True)


def parity(device: torch.device, rank: int, world: int, rows: Rows, compiled: bool) -> None:
    """Each engine against one device that takes the whole batch, in float32 and bf16."""
    cfg = small_config()
    per = BATCH // world
    share = slice(rank * per, (rank + 1) * per)
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        nets = build(cfg, device, plan("single", 0, None, BATCH, 1, False))
        losses = train(nets, cfg, slice(0, BATCH), BATCH, device, sync=False)
        reference = whole(nets)
        for engine, stage in ENGINES:
            for micro in (per,) if compiled else (per, 1):
                nets = build(cfg, device, plan(engine, stage, dtype, micro, per // micro, compiled))
                found = train(nets, cfg, share, micro, device, sync=True)
                difference = largest(whole(nets), reference)
                del nets
                rows.add(
                    {
                        "precision": name, "engine": engine, "stage": stage, "world": world, "micro": micro,
                        "accumulation": per // micro, "compile": compiled, "parameters": difference,
                        "losses": max(abs(a - b) / abs(b) for a, b in zip(found, losses, strict=True)),
                    }
                )  # fmt: skip


def memory(device: torch.device, rank: int, world: int, rows: Rows) -> None:
    """What stays allocated between steps, and at the boundary with gradients, against the formula."""
    cfg = load("default")
    cfg.model.encoder_pretrained = False
    with torch.device("meta"):
        counts = [sum(p.numel() for p in m(cfg.model).parameters()) for m in (Generator, Discriminator)]
    n = sum(counts)
    formula = {
        ("ddp", 0): (12, 16), ("fsdp", 0): (12 / world, 16 / world),
        ("deepspeed", 1): (2 + 12 / world, 4 + 12 / world), ("deepspeed", 2): (2 + 12 / world, 2 + 14 / world),
        ("deepspeed", 3): (14 / world, 16 / world),
    }  # fmt: skip
    for (engine, stage), (rest, _) in formula.items():
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        nets = build(cfg, device, plan(engine, stage, torch.bfloat16, 1, 1, False))
        share = slice(0, 1)
        batch = batch_of(0, share, 1, device)
        gan_step(nets["generator"], nets["discriminator"], batch, SmoothObjective(cfg))
        del batch
        gc.collect()
        held = torch.cuda.memory_allocated() - before
        del nets
        rows.add(
            {
                "engine": engine, "stage": stage, "world": world, "parameters_M": n / 1e6,
                "held_MiB": held / 2**20, "formula_MiB": n * rest / 2**20, "ratio": held / (n * rest),
            }
        )  # fmt: skip


def main() -> None:
    """Measure what the command line names; rank 0 writes."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["parity", "memory"])
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--compile", action="store_true", help="parity: with compiled blocks")
    args = p.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    env = detect()
    device = pick_device("cuda", env)
    with process_group(env, device, 5):
        rows = Rows(args.out, env.rank)
        if args.what == "parity":
            parity(device, env.rank, env.world_size, rows, args.compile)
        else:
            memory(device, env.rank, env.world_size, rows)


if __name__ == "__main__":
    main()
