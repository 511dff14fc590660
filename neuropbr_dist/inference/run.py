"""From a checkpoint and materials to files: maps, pictures, metrics."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from neuropbr_dist.checkpoint import check_outside
from neuropbr_dist.cluster import Environment, detect, pick_device, process_group
from neuropbr_dist.config import TrainConfig, from_yaml, to_yaml
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.data.builtin.cache import check_cache_asked
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference.figures import Figures, measured, table
from neuropbr_dist.inference.generator import InferenceGenerator, load_generator
from neuropbr_dist.inference.own import Own, Wanted, open_own
from neuropbr_dist.inference.pictures import write_pictures
from neuropbr_dist.inference.predict import predict, resolve_precision
from neuropbr_dist.inference.relight import NAME as ANIMATION
from neuropbr_dist.inference.relight import write_animation
from neuropbr_dist.inference.samples import OpenedSet, SetSamples, check_apart
from neuropbr_dist.inference.subject import Subject
from neuropbr_dist.logs import to_console
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.models import size_multiple
from neuropbr_dist.objectives import MetricSums
from neuropbr_dist.objectives.perceptual import load_perceptual
from neuropbr_dist.parallel.strips import share_rows, strip_of
from neuropbr_dist.strip import Strip

log = logging.getLogger(__name__)

GATHER_MINUTES = 30.0
"""Limit on a wait for another rank: the first writes files and compares meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Request for predictions: what to predict, by which weights, and what to write.

    Args:
        checkpoint: whatever `load_generator` takes.
        materials: folders of photos, or samples of a set.
        out_dir: where files go; several materials get a folder each in it. `{name}` in it is the material's.
        overrides: fields of `data` in place of the run's own; `data.image_size` is the side that views are resized to.
        device: as `training.device`.
        precision: `auto` (bf16 on GPUs that have it), `bf16` or `fp32`.
        batch_size: materials in a forward pass, 1 or more.
        tile, overlap: predict in tiles of so many pixels that share so many (see `predict`); None: whole.
        turns: orientations to take the mean of (see `predict`).
        bits: 8 or 16 a channel of the maps' files.
        relight: write an animation under a moving lamp as well.
        sample_ranks: ranks of a launcher, all of them, that share each picture by rows.
    """

    checkpoint: str
    materials: SetSamples | Own
    out_dir: Path
    overrides: Overrides = field(default_factory=Overrides)
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    batch_size: int = 1
    tile: int | None = None
    overlap: int | None = None
    turns: int = 1
    bits: Literal[8, 16] = 8
    relight: bool = False
    sample_ranks: int = 1

    @property
    def wants_all(self) -> bool:
        """Whether a whole set, or a side of it, is wanted."""
        return isinstance(self.materials, SetSamples) and self.materials.index == "all"


def infer(request: Request) -> None:
    """Predict, write what comes out, and say how good it is where the true maps are known.

    Raises:
        UserError: no such checkpoint, sample or render, or one that can't be used; `out_dir` is among what is read.
    """
    check_outside(request.out_dir)
    with place_of(request) as (device, strip):
        predict_all(request, device, strip)


@contextmanager
def place_of(request: Request) -> Iterator[tuple[torch.device, Strip | None]]:
    """Yield this process's device and, where several ranks share pictures, its strip, inside their process group.

    Raises:
        UserError: other ranks were started than are to share.
    """
    if request.sample_ranks == 1:
        yield pick_device(request.device, Environment(launcher="none")), None
        return
    env, ranks = detect(), request.sample_ranks
    if env.world_size != ranks:
        raise UserError(
            f"--sample-ranks {ranks}, but {env.world_size} rank(s) were started; "
            f"start as many: torchrun --nproc-per-node={ranks} launch/infer.py --sample-ranks {ranks} ..."
        )
    device = pick_device(request.device, env)
    to_console(env.rank)
    with process_group(env, device, GATHER_MINUTES):
        yield device, strip_of(ranks)


def predict_all(request: Request, device: torch.device, strip: Strip | None) -> None:
    """Predict each material, and on the first rank write and compare."""
    r = request
    model = load_generator(r.checkpoint).to(device)
    if strip is not None:
        share_rows(model, strip)
    precision = resolve_precision(r.precision, device)
    parameters = sum(p.numel() for p in model.parameters())
    kind = ", averaged weights" if model.averaged else ""
    where = f"{device}" if strip is None else f"{strip.count} ranks a picture on {device.type}"
    log.info(
        f"Generator of {model.origin} (step {model.step}{kind}): {parameters / 1e6:.1f} M, {where}, {precision}"
    )
    perceptual = load_perceptual(device)
    opened = open_inputs(r, model)
    figures = Figures(*opened.mean()) if isinstance(opened, OpenedSet) and r.wants_all else Figures()
    for group in batched(subjects(r, opened), r.batch_size):
        views = torch.stack([subject.views for subject, _ in group])
        known = [subject.cameras for subject, _ in group if subject.cameras is not None]
        cameras = torch.stack(known) if known else None
        preds = predict(
            model, views, cameras,
            precision=precision, tile=r.tile, overlap=r.overlap, strip=strip, turns=r.turns,
        )  # fmt: skip
        for (subject, folder), pred in zip(group, preds, strict=True):
            check_finite(subject, pred)
            if strip is not None and not strip.first:
                continue
            seen = model.seen(subject.views, subject.cameras)
            good = None if subject.maps is None else measured(pred, subject.maps, device, perceptual)
            show(subject, seen, pred, good, folder, model.step, bits=r.bits, relight=r.relight)
            if good is not None and subject.maps is not None:
                figures.add(subject.name, good, subject.maps)
    if len(figures.rows) > 1:
        log.info(f"Mean of {len(figures.rows)} samples:\n{figures.text()}")
        title = f"{model.origin}, step {model.step}: mean absolute errors of {len(figures.rows)} samples"
        log.info(f"Wrote {', '.join(figures.write(r.out_dir, title))} to {r.out_dir}")


def open_inputs(request: Request, model: InferenceGenerator) -> OpenedSet | Wanted:
    """Return the opened set; for pictures of one's own what the model takes.

    Raises:
        UserError: there is no such set, or `--out-dir` lies in it.
    """
    cfg = configured(request, model)
    if isinstance(request.materials, SetSamples):
        opened = OpenedSet(cfg, request.materials)
        check_apart(request.out_dir, opened.config.data)
        return opened
    said = "data.image_size" in request.overrides.named()
    return Wanted(model.on_plane, cfg.data, size_multiple(cfg.model), said)


def configured(request: Request, model: InferenceGenerator) -> TrainConfig:
    """Return the run's configuration with the request's changes.

    Raises:
        UserError: it would make a cache that the request doesn't name.
    """
    cfg = from_yaml(to_yaml(model.config), str(model.origin))
    request.overrides.apply(asked := TrainConfig())
    if isinstance(request.materials, SetSamples):
        check_cache_asked(
            cfg.data.builtin_cache, asked.data.builtin_cache, f"--checkpoint {request.checkpoint}"
        )
    request.overrides.apply(cfg)
    return cfg


def check_finite(subject: Subject, pred: Tensor) -> None:
    """Raise a UserError for maps that are no picture."""
    if not pred.isfinite().all():
        raise UserError(
            f"{subject.title}: what comes out is not finite, and nothing was written; try --precision fp32"
        )


def show(
    subject: Subject,
    seen: Tensor,
    pred: Tensor,
    good: MetricSums | None,
    folder: Path,
    step: int,
    *,
    bits: Literal[8, 16],
    relight: bool,
) -> None:
    """Write one material's files, and say how good they are where the true maps are known.

    Args:
        seen: what the model saw of it.
        pred: (8, S, S) float.
        good: how good that is, where the true maps are known.
        step: of the checkpoint.
    """
    log.info(f"{subject.label}, {subject.views.shape[-1]} px")
    for remark in subject.remarks:
        log.info(remark)
    if good is not None:
        log.info(table(good.result()))
    files = write_pictures(folder, subject, seen, pred, bits=bits, title=f"{subject.title}, step {step}")
    if relight:
        target = None if subject.maps is None else decode_maps(subject.maps[None])[0]
        write_animation(folder / ANIMATION, pred, target)
        files.append(ANIMATION)
    log.info(f"Wrote {', '.join(files)} to {folder}")


Placed = tuple[Subject, Path]


def batched(found: Iterable[Placed], count: int) -> Iterator[list[Placed]]:
    """Yield up to `count` materials of one size at a time, in order."""
    group: list[Placed] = []
    for placed in found:
        if group and (len(group) == count or placed[0].views.shape != group[0][0].views.shape):
            yield group
            group = []
        group.append(placed)
    if group:
        yield group


def placed(out: Path, name: str) -> Path:
    """Return the folder that `--out-dir` means for a material."""
    return Path(str(out).replace("{name}", name))


def subjects(request: Request, opened: OpenedSet | Wanted) -> Iterator[Placed]:
    """Yield what to predict, one at a time, and the folder for each."""
    materials, out = request.materials, request.out_dir
    if isinstance(opened, OpenedSet):
        for subject in opened.subjects():
            yield subject, out / subject.name if request.wants_all else placed(out, subject.name)
    elif isinstance(materials, Own):
        yield from open_own(materials, opened, out)
