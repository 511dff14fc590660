"""One engine at one world size: agreement and memory. Started by benchmarks/engines.py under torchrun."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from neuropbr_dist.cluster import detect, pick_device, process_group
from neuropbr_dist.config import load
from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.models import Discriminator, Generator
from neuropbr_dist.parallel import Network, NetworkSetup, build_network
from neuropbr_dist.training.objective import Objective
from neuropbr_dist.training.step import gan_step
from tests.support.parity import ADAM, Case, Row, differences, train_row, update_error
from tests.support.plain_loop import train_plain

SMOOTH = Case(batch=8)
DOUBLE = Case(batch=8, double=True)
PLANE = Case(batch=8, plane=True, seed=5)  # rectified views, of which some are missing
PLANE_DOUBLE = replace(PLANE, double=True)
JUDGED = replace(PLANE, judges_views=True)  # by a discriminator with spectral norms
JUDGED_DOUBLE = replace(JUDGED, double=True)
MATCHED = replace(SMOOTH, w_features=1.0)  # the discriminator's features
MATCHED_DOUBLE = replace(MATCHED, double=True)
RENDERED = Case(
    batch=8, plane=True, rendered=True, seed=5, steps=3, w_render=0.3
)  # anew, and looked at in its light
RENDERED_DOUBLE = replace(RENDERED, double=True)
TINY = Case(batch=8, depth=1, d_layers=1)  # for the compiler
# For two ranks that share a sample: three rows of each where the discriminator ends.
SHARED, SHARED_DOUBLE, SHARED_TINY = (replace(case, side=32) for case in (PLANE, DOUBLE, TINY))
SHARED_EXACT, SHARED_MATCHED = replace(SHARED, double=True), replace(MATCHED, side=32)
ENGINES = {
    "single": Row(engine="single"),
    "ddp": Row(engine="ddp"),
    "fsdp": Row(engine="fsdp"),
    "hsdp": Row(engine="fsdp", shard="node"),
    **{f"zero{stage}": Row(engine="deepspeed", stage=stage) for stage in (1, 2, 3)},
}
BUCKET = 5_000_000
"""Elements of ZeRO's communication buckets in the memory rows: they are no part of the formula."""
SIDE = 192  # px: the default discriminator takes no less


class Rows(list[dict[str, Any]]):
    """Results, written after every row: a run cut short still leaves what it measured."""

    def __init__(self, out: Path, rank: int, facts: dict[str, Any]) -> None:
        super().__init__()
        self.out, self.rank, self.facts = out, rank, facts

    def measure(self, labels: dict[str, Any], row: Callable[[], dict[str, Any]]) -> None:
        """A row that fails on all ranks alike is noted with its error, and the next one goes on."""
        try:
            found = row()
        except (RuntimeError, AssertionError) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(where.filename).name}:{where.lineno}"
            found = {"error": f"{type(error).__name__} at {at}: {str(error)[:200]}"}
        self.append(self.facts | labels | found)
        gc.collect()
        torch.cuda.empty_cache()
        if self.rank == 0:
            self.out.write_text(json.dumps(self, indent=1) + "\n")
            print(self[-1], flush=True)


# -- agreement -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What one process's runs of the whole batch say, by case and whether in bf16; empty but on rank 0."""

    runs: dict[tuple[Case, bool], dict[str, Any]] = field(default_factory=dict)
    """The plain loop, and in bf16 the engine `single`."""
    noise: dict[Case, dict[str, Any]] = field(default_factory=dict)
    """How far bf16 is off from float32 by itself."""


def references(device: str, compiled: bool) -> Known:
    """Train every case as one process does."""
    shared = (SHARED, SHARED_EXACT, SHARED_DOUBLE, SHARED_MATCHED)
    cases = [SMOOTH, DOUBLE, PLANE, PLANE_DOUBLE, JUDGED, JUDGED_DOUBLE, MATCHED, MATCHED_DOUBLE, RENDERED]
    cases += [RENDERED_DOUBLE, *shared, *((TINY, SHARED_TINY) if compiled else ())]
    runs = {(case, False): train_plain(case, device=device) for case in cases}
    noise = {}
    for case in cases:
        plain = runs[case, False]
        if not case.double:
            bf16 = runs[case, True] = train_row(case, Row(engine="single", world=1, bf16=True, device=device))
            noise[case] = distances(bf16, plain, case)
    return Known(runs, noise)


def distances(found: dict[str, Any], reference: dict[str, Any], case: Case) -> dict[str, Any]:
    """Largest of any tensor and record, and which; of parameters and of losses; how far the update itself is off."""
    ratios = differences(found, reference)
    return {
        "all": max(ratios.values()),
        "worst": max(ratios, key=lambda name: ratios[name]),
        "parameters": max(value for name, value in ratios.items() if "/param/" in name),
        "losses": max(ratios["G_loss"], ratios["D_loss"]),
        "update": update_error(found["state"], reference["state"], case),
    }


def agreement_rows(engine: Row, compiled: bool) -> Iterator[tuple[str, Case, Row]]:
    """Precision, case and row of everything that one engine is compared in."""
    cuts = [replace(engine, accumulation=a, recompute="full" if a > 1 else "none") for a in (1, 2)]
    if engine.engine != "deepspeed":
        cases = (DOUBLE, PLANE_DOUBLE, JUDGED_DOUBLE, MATCHED_DOUBLE, RENDERED_DOUBLE)
        yield from (("float64", case, row) for case in cases for row in cuts)
    yield from (("float32", SMOOTH, row) for row in cuts)
    yield from (("bf16", SMOOTH, replace(row, bf16=True)) for row in cuts)
    yield from (("float32", PLANE, cuts[1]), ("bf16", PLANE, replace(cuts[0], bf16=True)))
    yield from (("float32", JUDGED, cuts[1]), ("bf16", JUDGED, replace(cuts[0], bf16=True)))
    yield from (("float32", MATCHED, cuts[1]), ("bf16", MATCHED, replace(cuts[0], bf16=True)))
    yield "float32", RENDERED, cuts[0]
    if compiled:
        yield "bf16", TINY, replace(engine, bf16=True, compile=True)
    if engine.world % 2 == 0:
        yield from shared_rows(replace(engine, sample_ranks=2), compiled)


def shared_rows(pairs: Row, compiled: bool) -> Iterator[tuple[str, Case, Row]]:
    """The same of pairs of ranks that share their samples."""
    if pairs.engine != "deepspeed":
        yield "float64", SHARED_DOUBLE, pairs
    for kind in ("none", "selective", "full"):
        yield "float32", SHARED, replace(pairs, recompute=kind)
    yield "bf16", SHARED, replace(pairs, bf16=True, recompute="full")
    yield "float32", SHARED_MATCHED, replace(pairs, accumulation=2)
    if compiled:
        yield "bf16", SHARED_TINY, replace(pairs, bf16=True, compile=True)


def agreement(rows: Rows, engine: Row, known: Known, compiled: bool) -> None:
    """Train each row and compare it with the plain loop and, in bf16, with one device's run."""
    for precision, case, row in agreement_rows(engine, compiled):

        def one(case: Case = case, row: Row = row) -> dict[str, Any]:
            found = train_row(case, row)
            return distances(found, known.runs[case, row.bf16], case) if rows.rank == 0 else {}

        labels = {
            "what": "agreement", "precision": precision, "accumulation": row.accumulation,
            "recompute": row.recompute, "compile": row.compile, "sample_ranks": row.sample_ranks, "views": views_of(case),
            "yardstick": known.noise.get(case, {}) if row.bf16 else {},
        }  # fmt: skip
        rows.measure(labels, partial(one))


def views_of(case: Case) -> str:
    """What a case's networks see, and whether the generator is to match the discriminator's features."""
    if case.rendered:
        return "rendered"
    if case.w_features:
        return "as they are, matched"
    return "plane, judged" if case.judges_views else "plane" if case.plane else "as they are"


# -- memory --------------------------------------------------------------------------------


def formula(engine: str, world: int) -> tuple[float, float, float]:
    """Bytes a parameter in bf16 on one rank: parameters (and masters), gradients, moments.

    DDP computes under autocast: no copy in bf16. FSDP2's shards are float32, the bf16 copy of a unit
    lives while it computes. ZeRO holds bf16 parameters and float32 masters; gradients are bf16. Stage 1 too
    drops what other ranks own as it is reduced, in a step's last backward (`reduce_ready_partitions_and_remove_grads`
    of DeepSpeed's `stage_1_and_2.py`); only between micro-batches does it hold all gradients.
    """
    shards = {"single": 1, "ddp": 1, "hsdp": world // 2}.get(engine, world)
    parameters = {"zero1": 2 + 4 / world, "zero2": 2 + 4 / world, "zero3": 6 / world}
    gradients = 2 / world if engine.startswith("zero") else 4 / shards
    return parameters.get(engine, 4 / shards), gradients, 8 / shards


def default_networks(device: torch.device, row: Row) -> list[Network]:
    """The guide's two networks on a row's engine."""
    cfg = load("guide")
    cfg.model.encoder_pretrained = False
    zero = {
        "stage": row.stage, "overlap_comm": True, "contiguous_gradients": True, "memory_efficient_linear": False,
        "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET, "stage3_prefetch_bucket_size": BUCKET,
    }  # fmt: skip
    ds = {
        "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1.0, "zero_optimization": zero,
        "bf16": {"enabled": True}, "communication_data_type": "fp32", "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip
    plan = NetworkSetup(
        engine=row.engine, adam=ADAM, clip=1.0, dtype=torch.bfloat16, recompute="full", compile_blocks=False,
        shard=row.shard, ranks_per_node=2, ds_config=ds if row.engine == "deepspeed" else None,
    )  # fmt: skip
    torch.manual_seed(1)
    nets = (Generator(cfg.model), Discriminator(cfg.model))
    return [build_network(net, device, replace(plan)) for net in nets]


def memory(device: torch.device, name: str, row: Row) -> dict[str, Any]:
    """What stays allocated where both networks have their gradients, and between steps; MiB a rank."""
    held: dict[str, float] = {}
    torch.ones(512, 512, device=device).matmul(torch.ones(512, 512, device=device))  # cuBLAS's workspace
    before = allocated(device)
    g, d = default_networks(device, row)
    step = d.step

    def step_of_d() -> Any:  # the joint update's first: all gradients are there, no graph is left
        held["with_gradients"] = allocated(device) - before
        return step()

    d.step = step_of_d  # type: ignore[method-assign]
    views, maps = torch.rand(1, 3, 3, SIDE, SIDE, device=device), torch.rand(1, 8, SIDE, SIDE, device=device)
    batch = [DeviceBatch(views, maps, torch.full((1,), 1 / row.world, device=device))]
    for _ in range(2):
        gan_step(g, d, batch, Objective(load("guide")))
    held["between_steps"] = allocated(device) - before
    parameters, gradients, moments = formula(name, row.world)
    with torch.device("meta"):  # a rank's own shards are not all of them
        whole = [net(load("guide").model) for net in (Generator, Discriminator)]
    n = sum(p.numel() for net in whole for p in net.parameters())
    return {
        **{where: value / 2**20 for where, value in held.items()}, "parameters": n,
        "formula": n * (parameters + gradients + moments) / 2**20,
        "ratio": held["with_gradients"] / (n * (parameters + gradients + moments)),
    }  # fmt: skip


def allocated(device: torch.device) -> int:
    """Bytes that tensors hold now."""
    gc.collect()
    torch.cuda.synchronize(device)
    return torch.cuda.memory_allocated(device)


# -- this rank -----------------------------------------------------------------------------


def main() -> None:
    """One engine at one world size: a process a rank."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("engine", choices=ENGINES)
    p.add_argument("--compile", action="store_true", help="a row with compiled blocks too")
    p.add_argument("--device", default="cuda", help="cpu: agreement only")
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    env = detect()
    device = pick_device(args.device, env)
    engine = replace(ENGINES[args.engine], world=env.world_size, device=str(device))
    # Before there is a group: a reference is one process's.
    known = references(str(device), args.compile) if env.rank == 0 else Known()
    facts = {"engine": args.engine, "world": env.world_size, "torch": torch.__version__}
    if args.engine == "single":
        measure(Rows(args.out, env.rank, facts), args, device, engine, known)
        return
    with process_group(env, device, 5):
        measure(Rows(args.out, env.rank, facts), args, device, engine, known)


def measure(rows: Rows, args: argparse.Namespace, device: torch.device, engine: Row, known: Known) -> None:
    """Agreement, then the memory of the state."""
    if device.type == "cuda":
        rows.facts["gpu"] = torch.cuda.get_device_name(device)
        rows.measure({"what": "memory"}, partial(memory, device, args.engine, engine))
    agreement(rows, engine, known, args.compile)


if __name__ == "__main__":
    main()
