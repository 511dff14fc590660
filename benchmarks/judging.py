"""Judgement of a trained generator on samples that it wasn't trained on: held-out built-in materials, another set.

Cameras can be changed on the way: a view missing, views shifted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from neuropbr_dist.config import MATERIAL_CHANGES, DataConfig, LossConfig, TrainConfig, with_fields
from neuropbr_dist.data.alignment import Alignment, Encoded, known, shift
from neuropbr_dist.data.open import open_source, split_entries
from neuropbr_dist.data.sources import Source
from neuropbr_dist.inference.generator import InferenceGenerator
from neuropbr_dist.inference.predict import resolve_precision
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.objectives import MetricSums, ReconstructionLoss

BATCH = 8
SHIFT = 4 / 512
"""Of every view, in a direction of its own, as a share of its side."""
BUILTIN: dict[str, Any] = {
    "builtin": True, "render": "stored", "input_dir": None, "output_dir": None, "metadata_path": None,
    "packed_dir": None, "materials_dir": None,
}  # fmt: skip
"""Fields of `data` that mean the built-in set, whichever a run names."""
NOT_RENDERED = {"renders_per_epoch": None, "environments_dir": None, **dict.fromkeys(MATERIAL_CHANGES, 0.0)}
"""Fields of `data` that only rendered views have, as stored ones want them."""
Change = Callable[[Encoded, str], list[Encoded]]
"""An entry's cameras (3, 14) and its key -> the cameras that it is judged with, one or several."""


def held_out(cfg: TrainConfig) -> tuple[Source, Sequence[Any]]:
    """Stored views of the built-in materials that the run held out; of one that trained on another set, those that
    it would hold out of them: it saw none."""
    data = with_fields(cfg, data={**BUILTIN, **NOT_RENDERED}).data
    source = open_source(data, cfg.training.seed)
    return source, split_entries(source, data, cfg.model.align, cfg.training.seed)[1]


def judged_sets(
    cfg: TrainConfig, real: Sequence[str] | None, samples: Sequence[str] | None
) -> dict[str, tuple[Source, Sequence[Any]]]:
    """Return what a run is judged on, by name: a set and the entries of it that count.

    Args:
        real: renders and maps of another set, with cameras.
        samples: of `real`, in a row of their own.
    """
    sets = {"held-out built-ins": held_out(cfg)}
    if real is not None:
        other, all_of_it = with_cameras(real, cfg.data.image_size)
        if samples:
            sets["real, named samples"] = other, [entry for entry in all_of_it if entry.name in samples]
        sets["real, all with cameras"] = other, all_of_it
    return sets


def with_cameras(real: Sequence[str], size: int | None) -> tuple[Source, list[Any]]:
    """Another set's clean samples of which a view has a camera."""
    data = DataConfig(input_dir=real[0], output_dir=real[1], image_size=size)
    source = open_source(data, 0)
    return source, [e for e in source.entries if known(source.cameras(e), data.min_confidence).any()]


# -- what is done to cameras ---------------------------------------------------------------


def as_they_are(cameras: Encoded, _key: str) -> list[Encoded]:
    """No change."""
    return [cameras]


def one_missing(cameras: Encoded, _key: str) -> list[Encoded]:
    """Each of the views missing once; of one alone none is."""
    views = np.flatnonzero(known(cameras, 0))
    if len(views) < 2:
        return [cameras]
    return [np.where(np.arange(len(cameras))[:, None] == view, np.float32(0), cameras) for view in views]


def one_alone(cameras: Encoded, _key: str) -> list[Encoded]:
    """Each of the views as the only one."""
    return [
        np.where(np.arange(len(cameras))[:, None] == view, cameras, np.float32(0))
        for view in np.flatnonzero(known(cameras, 0))
    ]


def jittered(cameras: Encoded, key: str) -> list[Encoded]:
    """As in training with `data.camera_jitter = 4/512`: every view by up to that, in a direction of its own; three draws."""
    alignment = Alignment(min_confidence=0, jitter=SHIFT)
    return [alignment.of(cameras, draw, key) for draw in range(3)]


def all_shifted(cameras: Encoded, key: str) -> list[Encoded]:
    """Every view by `SHIFT`, in a direction that the key says."""
    moved, rng = cameras.copy(), np.random.default_rng(list(key.encode()))
    for camera in moved:
        angle = rng.uniform(0, 2 * math.pi)
        shift(camera, SHIFT * math.cos(angle), SHIFT * math.sin(angle))
    return [moved]


# -- metrics -------------------------------------------------------------------------------


def evaluate(
    model: InferenceGenerator, source: Source, entries: Sequence[Any], change: Change
) -> dict[str, float]:
    """Metrics over entries, each as often as `change` gives cameras for it."""
    device = next(model.parameters()).device
    sums = MetricSums(ReconstructionLoss(LossConfig()), device)
    jobs = [(entry, cameras) for entry in entries for cameras in cameras_of(model, source, entry, change)]
    for i in range(0, len(jobs), BATCH):
        pred, maps = predict(
            [entry for entry, _ in jobs[i : i + BATCH]], [c for _, c in jobs[i : i + BATCH]], model, source
        )
        sums.update(pred, maps)
    return sums.result()


def cameras_of(model: InferenceGenerator, source: Source, entry: Any, change: Change) -> list[Encoded | None]:
    """None for a network that takes views as they are."""
    alignment = Alignment.of_run(model.config, training=False)
    if alignment is None:
        return [None]
    return list(change(alignment.of(source.cameras(entry), 0, entry.key), entry.key))


def evaluate_constant(maps: Tensor, source: Source, entries: Sequence[Any]) -> dict[str, float]:
    """Metrics over entries of one prediction for all, maps (8, 1, 1) with a normal of unit length, on its device."""
    sums = MetricSums(ReconstructionLoss(LossConfig()), maps.device)
    for entry in entries:
        true = decode_maps(torch.from_numpy(np.array(source.maps(entry)))[None].to(maps.device))
        sums.update(maps[None].expand_as(true), true)
    return sums.result()


@torch.no_grad()
def predict(
    entries: Sequence[Any], cameras: Sequence[Encoded | None], model: InferenceGenerator, source: Source
) -> tuple[Tensor, Tensor]:
    """Predicted and true maps (B, 8, S, S) on the model's device."""
    device = next(model.parameters()).device
    loaded = [source.load(entry) for entry in entries]
    views, maps = (torch.from_numpy(np.stack(pictures)).to(device) for pictures in zip(*loaded, strict=True))
    rows = [row for row in cameras if row is not None]
    ready = model.prepare(views, torch.from_numpy(np.stack(rows)) if rows else None)
    bf16 = resolve_precision("auto", device) == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        pred = model(ready)
    return pred.float(), decode_maps(maps)


def thumbnail(values: Tensor, side: int) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (side, side, 3) uint8."""
    pixels = (values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))
