"""Validation: the held-out samples, each once over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from neuropbr_dist.config import TransformConfig
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.batch import MicroBatch, filler
from neuropbr_dist.data.device import shown, to_device
from neuropbr_dist.data.loader import batches_of, validation_slots
from neuropbr_dist.data.order import Slot
from neuropbr_dist.data.rendered.renderer import Renderer
from neuropbr_dist.monitor import Look, take_look
from neuropbr_dist.objectives import MetricSums, ReconstructionLoss
from neuropbr_dist.objectives.perceptual import Perceptual
from neuropbr_dist.parallel import Network
from neuropbr_dist.parallel.blocks import uncompiled
from neuropbr_dist.parallel.sync_batch import average_running_statistics
from neuropbr_dist.strip import Strip
from neuropbr_dist.training.baseline import mean_maps
from neuropbr_dist.training.faults import Fault
from neuropbr_dist.training.objective import Objective
from neuropbr_dist.training.sharing import rows_of
from neuropbr_dist.training.stages import RunStage

FEW_BATCHES = 32
"""Of a rank in a validation, up to which it runs uncompiled: without gradients all is compiled once more, 38 to 55 s on empty
caches (`benchmarks/results/2026-11-29-recipe-h200.md`). The recipe's first validation takes 5 to 8 s uncompiled
(`2026-11-26-memory-compile-h100.md` beside it)."""
LOOKS = 2  # validation samples kept as pictures: the first ones of rank 0's share, so always the first of all


class Validation(NamedTuple):
    """Result of a pass over the held-out samples."""

    sums: MetricSums
    """Metrics' sums over all ranks' samples; the same on every rank."""
    baseline: MetricSums | None
    """The same sums for mean maps, if they were asked for."""
    looks: list[Look]
    """This rank's first samples, made small for a person."""


def validate_stage(
    stage: RunStage,
    g: Network,
    objective: Objective,
    renderer: Renderer,
    fault: Fault,
    limit_s: float,
    perceptual: Perceptual | None = None,
    strip: Strip | None = None,
    *,
    baseline: bool,
) -> Validation | None:
    """Validate at a stage's side; see `validate`. None: a rank couldn't read its share. Collective.

    Args:
        fault: told what is wrong with this rank's share.
        limit_s: seconds that a batch may take.
        perceptual, strip: see `validate`.
        baseline: compare the mean maps of the training set as well.
    """
    setup, samples = stage.setup, stage.samples
    cfg, (groups, group) = setup.cfg, setup.data_place
    slots = validation_slots(len(samples.val), groups, group, cfg.training.batch_size)
    side, cameras = samples.source.size, cfg.model.align == "plane"
    rows = rows_of(setup.env, setup.sample_ranks, side)
    loader = batches_of(
        cfg.data, samples.source, samples.val, slots, setup.device, min(cfg.data.num_workers, len(slots)),
        alignment=Alignment.of_run(cfg, training=False), relight=objective.relight, rows=rows, limit_s=limit_s,
    )  # fmt: skip
    with loader as batches, uncompiled(setup.compile != "off" and len(slots) <= FEW_BATCHES):
        found = validate(
            g, filled_up(batches, slots, fault, partial(filler, side=side, cameras=cameras, rows=rows)), cfg.transform,
            objective.reconstruction_loss, setup.device, LOOKS if group == 0 else 0, renderer, perceptual,
            mean=mean_maps(samples.source, samples.train) if baseline else None, strip=strip,
        )  # fmt: skip
    return None if fault.anywhere() else found


def filled_up(
    batches: Iterator[MicroBatch],
    slots: Sequence[Sequence[Slot]],
    fault: Fault,
    spare: Callable[[int], MicroBatch],
) -> Iterator[MicroBatch]:
    """Yield a batch for each of `slots`, also after a `fault`, so that ranks stay together: nothing counts then.

    Args:
        spare: makes what stands in for a batch of so many samples.
    """
    for chosen in slots:
        if fault.error is None:
            with fault.noting():
                yield next(batches)
                continue
        yield spare(len(chosen))


@torch.no_grad()
def validate(
    g: Network,
    loader: Iterable[MicroBatch],
    transform: TransformConfig,
    reconstruction: ReconstructionLoss,
    device: torch.device,
    looks: int = 0,
    renderer: Renderer | None = None,
    perceptual: Perceptual | None = None,
    mean: Tensor | None = None,
    strip: Strip | None = None,
) -> Validation:
    """Predict all held-out samples, each once over all ranks, and compare.

    Args:
        loader: this rank's share, of samples that it shares its strip's rows; filler has weight 0.
        looks: how many samples to keep.
        renderer: see `to_device`.
        perceptual: gives LPIPS; None: it is left out.
        mean: (8, 1, 1) maps to be compared as well, as if they were predicted of every sample.
        strip: this rank's of samples that several share. What they predict is put together on all of them, and
            counted by the first. None: it has whole ones.
    """
    average_running_statistics(g.module)
    g.module.eval()
    sums = MetricSums(reconstruction, device, perceptual)
    baseline = None if mean is None else MetricSums(reconstruction, device, perceptual)
    kept: list[Look] = []
    counts = strip is None or strip.first
    for host in loader:
        batch = to_device(host, 1, transform, device, renderer=renderer)
        pred, maps = whole(g(batch.views), strip), whole(batch.maps, strip)
        if counts:
            sums.update(pred, maps, batch.weight, batch.relighting)
        if counts and baseline is not None and mean is not None:
            baseline.update(mean.to(maps).expand_as(maps), maps, batch.weight, batch.relighting)
        for i in range(min(looks - len(kept), len(host.keys))):
            if host.weight[i] > 0:
                views = shown(whole(batch.views[i], strip), transform)
                kept.append(take_look(host.keys[i], views, pred[i], maps[i]))
    if dist.is_initialized():
        for found in (sums, baseline):
            if found is not None:
                dist.all_reduce(found.tensor())
    g.module.train()
    return Validation(sums, baseline, kept if counts else [])


def whole(pictures: Tensor, strip: Strip | None) -> Tensor:
    """Return pictures (N, C, H, W) of which this rank has a strip, put together; None: it has all of them."""
    return pictures if strip is None else strip.whole(pictures)
