"""Hours and memory of a run, stage by stage, before it is started: reckoned from measured steps (benchmarks/rates.yaml).

    launch/benchmark.py plan --gpus 4 --samples 20000 --stages \
        "[{until_epoch: 20, image_size: 256, batch_size: 8}, {until_epoch: 24, image_size: 2048}]"

A micro-batch takes what the card needs for its arithmetic, at the share of the card's own speed that large steps
reached, or what the host needs to launch its kernels, if that is longer. Waiting for data, validation, saves and
start-up are not in it. `--run FOLDER` puts beside it what a run saw.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks.options import fields_of, measurement
from neuropbr_dist.cluster import Environment
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.config import DataConfig, ModelConfig, TrainConfig, with_fields
from neuropbr_dist.config.text import parse_yaml, read_text
from neuropbr_dist.data.open import Samples
from neuropbr_dist.data.split import Subset
from neuropbr_dist.errors import UserError
from neuropbr_dist.models import Discriminator, Generator
from neuropbr_dist.report.folder import RunFolder, read_run
from neuropbr_dist.training.flops import sample_flops
from neuropbr_dist.training.stages import RunStage, StagedRun, check_stages, open_run, set_up_run

RATES = Path(__file__).with_name("rates.yaml")
GIB = 2**30
PER_NODE = 8


@dataclass(frozen=True)
class Rates:
    """The measured steps."""

    peak: float
    """FLOP/s of a card's own matrix product."""
    efficiency: float
    """Share of one GPU's samples/s that each of several keeps."""
    device: list[dict[str, Any]]
    host: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path = RATES) -> Rates:
        """Return the table that comes with the benchmarks."""
        tree = parse_yaml(read_text(path, "rates"), str(path))
        return cls(tree["peak_tflops"] * 1e12, tree["efficiency"], tree["device"], tree["host"])

    def seconds(self, flops: float, layers: int, plan: str, graphs: bool) -> float:
        """Return what a micro-batch of so many `flops` and `layers` takes."""
        launches = [row["ms"] / row["layers"] for row in self.host if row["graphs"] == graphs]
        return max(flops / (self.peak * self.mfu(flops, plan)), layers * mean(launches) / 1000)

    def mfu(self, flops: float, plan: str) -> float:
        """Return the share of `peak` reached, between measured sizes over the logarithm of the work."""
        points = sorted((row["tflop"], row["mfu"]) for row in self.device if row["plan"] == plan)
        sizes, shares = zip(*points, strict=True)
        return float(np.interp(np.log(flops / 1e12), np.log(sizes), shares))


def layers_of(model: ModelConfig, gan: bool) -> int:
    """Return the layers that a micro-batch goes through: the discriminator's in its own pass and in the generator's."""
    with torch.device("meta"):
        networks = [Generator(model), *([Discriminator(model)] * 2 if gan else [])]
    return sum(not list(module.children()) for network in networks for module in network.modules())


@dataclass(frozen=True)
class Reckoned:
    """What one stage comes to."""

    stage: RunStage
    samples: int
    steps: int
    gib: float
    """A rank's memory at most, as `training.memory` estimates it."""
    samples_per_s: float
    """With the GAN, if the stage has one by its end."""
    hours: float


def reckon(run: StagedRun, stage: RunStage, rates: Rates) -> Reckoned:
    """Return what a stage comes to on the run's ranks."""
    setup, order, t = stage.setup, stage.order, stage.setup.cfg.training
    flops, world = sample_flops(setup.cfg, setup.samples.side), setup.env.world_size
    layers = {gan: layers_of(setup.cfg.model, gan) for gan in {False, setup.cfg.model.use_gan}}
    seconds, per_s, first = 0.0, 0.0, run.begins(stage) // order.n
    for epoch in range(first, t.epochs):
        gan = setup.cfg.model.use_gan and epoch + 1 >= t.gan_start_epoch
        work = setup.micro.size * flops.step(gan=gan, d_steps=t.d_steps_per_g_step)
        micro_s = rates.seconds(work, layers[gan], setup.memory, setup.replays)
        step_s = setup.micro.per_step * micro_s
        per_s = order.global_batch / step_s * (rates.efficiency if world > 1 else 1.0)
        seconds += order.n / per_s
    samples = stage.last - run.begins(stage)
    steps = -(-samples // order.global_batch)
    gib = setup.need.at(setup.samples.side)[setup.memory] / GIB
    return Reckoned(stage, samples, steps, gib, per_s, seconds / 3600)


def seen(found: RunFolder, run: StagedRun, stage: RunStage) -> tuple[float, float] | None:
    """Return (samples/s, hours of steps) that a run's log has of a stage; None where it has none."""
    samples, seconds, before = 0.0, 0.0, 0.0
    for line in found.metrics:
        speed, cursor = line.get("speed/samples_per_s"), float(line["samples"])
        if speed and run.begins(stage) < cursor <= stage.last:
            taken = cursor - max(before, run.begins(stage))
            samples, seconds = samples + taken, seconds + taken / speed
        before = cursor
    return (samples / seconds, seconds / 3600) if seconds else None


def planned(cfg: TrainConfig, gpus: int, samples: Samples, gib: float) -> StagedRun:
    """Return the set-up of a run on so many GPUs; none need be here.

    Raises:
        UserError: what would be refused at its start.
    """
    here = min(gpus, PER_NODE)
    env = Environment(launcher="torchrun" if gpus > 1 else "none", world_size=gpus, local_world_size=here)
    if cfg.training.precision == "auto":
        cfg = with_fields(cfg, training={"precision": "bf16"})
    check_stages(cfg, gpus)
    return set_up_run(cfg, env, torch.device("cuda"), samples, int(gib * GIB))


def with_count(samples: Samples, count: int) -> Samples:
    """Return samples of which `count` are trained on: only how many there are is asked for."""
    return Samples(
        samples.source, Subset(range(count), range(count)), samples.val,  # type: ignore[arg-type]
        samples.data, samples.align, samples.cameras,
    )  # fmt: skip


def table(run: StagedRun, rates: Rates, found: RunFolder | None) -> list[str]:
    """Return the lines to print."""
    head = (
        "stage  epochs     side  batch                 samples   steps  plan      GiB/rank  samples/s   hours"
    )
    lines, hours, beside = [head + ("   seen/s  seen h" if found else "")], 0.0, 0.0
    for stage in run.stages:
        r, micro = reckon(run, stage, rates), stage.setup.micro
        first = run.begins(stage) // stage.order.n + 1
        batch = f"{stage.order.global_batch} = {micro.per_step} x {micro.size} a rank"
        line = (
            f"{stage.number:<6} {f'{first}-{stage.setup.cfg.training.epochs}':<8} {stage.setup.samples.side:>6}  "
            f"{batch:<19} {r.samples:>9,} {r.steps:>7,}  {stage.setup.memory:<8} {r.gib:>9.1f} {r.samples_per_s:>10.2f} "
            f"{r.hours:>7.2f}"
        )
        was = seen(found, run, stage) if found else None
        if was:
            line, beside = f"{line} {was[0]:>8.2f} {was[1]:>7.2f}", beside + was[1]
        lines, hours = [*lines, line], hours + r.hours
    total = f"In all {hours:.2f} hours of steps" + (f", seen {beside:.2f}" if found else "")
    return [*lines, f"{total}; validation, saves and start-up come on top."]


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py plan`."""
    p = measurement(__doc__, prog, config=None)
    p.add_argument("--stages", metavar="YAML", help="short for --set training.stages=YAML")
    p.add_argument("--gpus", type=int, default=1, metavar="N", help="ranks; default %(default)s")
    p.add_argument(
        "--samples", type=int, metavar="N", help="training samples; default: those of the set that is named"
    )
    p.add_argument(
        "--gib", type=float, default=79.0, metavar="GIB", help="memory of a GPU; default %(default)s"
    )
    p.add_argument("--run", type=Path, metavar="FOLDER", help="a run's folder: what it saw stands beside")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print a row a stage."""
    args = parser(prog).parse_args(argv)
    for name, least in (("gpus", 1), ("samples", 1)):
        given = getattr(args, name)
        if given is not None and given < least:
            raise UserError(f"--{name} {given}; allowed: {least} or more")
    if args.stages is not None:
        args.set = [*(args.set or []), f"training.stages={args.stages}"]
    cfg = fields_of(args, {}).configuration()
    if args.samples:  # no set is opened
        samples = with_count(open_run(replace(cfg, data=DataConfig(builtin=True))), args.samples)
    else:
        samples = open_run(cfg)
    whole = planned(cfg, args.gpus, samples, args.gib)
    rates = Rates.read()
    print("\n".join(table(whole, rates, read_run(args.run) if args.run else None)))
    if args.gpus > 4:
        print(
            "More than 4 GPUs were never measured: the same share of one GPU's samples/s is taken for each."
        )
