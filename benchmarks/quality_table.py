"""Judgement of `quality.py`'s runs, and its page and picture."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.judging import (
    as_they_are,
    cameras_of,
    evaluate,
    evaluate_constant,
    held_out,
    judged_sets,
    one_alone,
    one_missing,
    predict,
    thumbnail,
)
from benchmarks.runs import ms_per_step
from neuropbr_dist.data.open import open_source, split_entries
from neuropbr_dist.inference import load_generator
from neuropbr_dist.inference.generator import InferenceGenerator
from neuropbr_dist.materials.channels import MAP_SLICES, as_stored
from neuropbr_dist.monitor.run_logs import HISTORY, METRICS, run_log
from neuropbr_dist.training.baseline import mean_maps
from neuropbr_dist.training.facts import device_name, versions

COLUMNS = (
    ("albedo_mae", "albedo", 4), ("roughness_mae", "roughness", 4), ("metallic_mae", "metallic", 4),
    ("normal_angle_mean", "normals, °", 2), ("albedo_ssim", "SSIM of the albedo", 3),
    ("relit_rmse", "re-rendered RMSE", 3), ("relit_ssim", "re-rendered SSIM", 3), ("relit_sharpness", "re-rendered sharpness", 3),
)  # fmt: skip
RIVALS = (("train/D_loss", "D loss"), ("train/G_gan_loss", "adversarial loss of G"))
MEAN = "mean maps, flat normals"
FEWER = {"a view missing": one_missing, "one view alone": one_alone}
"""Further rows of a network on the plane that takes several views."""
SHOWN, CELL, LABEL = 5, 128, 18


@dataclass
class Result:
    """One finished run and how good it is."""

    name: str
    """VARIANT-SEED."""
    folder: Path
    model: InferenceGenerator
    rows: dict[str, dict[str, float]]
    """What it is judged on -> metrics (`MetricSums.result`)."""
    baseline: dict[str, dict[str, float]]
    """What it is judged on -> metrics of the training set's mean maps, whose normals are flat."""

    @property
    def variant(self) -> str:
        return self.name.rsplit("-", 1)[0]

    @property
    def seed(self) -> str:
        return self.name.rsplit("-", 1)[1]

    @property
    def ms(self) -> float:
        """Median of a step."""
        return ms_per_step(self.folder)

    @property
    def start(self) -> dict[str, Any]:
        """The run's first line in `history.jsonl`."""
        return run_log(self.folder, HISTORY).read()[0]

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        return run_log(self.folder, METRICS).read()

    def mean_maps(self, where: str) -> dict[str, float]:
        """Return mean maps' metrics on what `where` is about, however many views there are."""
        return next(found for name, found in self.baseline.items() if where.startswith(name))

    def over_flat(self, where: str) -> float:
        """Return its mean angle over that of flat normals on the same materials: each seed has its own."""
        return self.rows[where]["normal_angle_mean"] / self.mean_maps(where)["normal_angle_mean"]

    def last(self, name: str) -> float | None:
        """The last logged value of this name."""
        found = [line[name] for line in self.lines if name in line]
        return float(found[-1]) if found else None


def judged(name: str, folder: Path, real: Sequence[str] | None, samples: Sequence[str] | None) -> Result:
    """Judge a run's newest weights, and mean maps beside them; see `judged_sets`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_generator(folder).to(device)
    sets = judged_sets(model.config, real, samples)
    mean = mean_of_training_set(model).to(device)
    baseline = {where: evaluate_constant(mean, *there) for where, there in sets.items()}
    found = Result(name, folder, model, {}, baseline)
    found.rows |= {where: evaluate(model, *there, as_they_are) for where, there in sets.items()}
    if model.on_plane and model.config.data.views > 1:
        for what, change in FEWER.items():
            found.rows |= {
                f"{where}, {what}": evaluate(model, *there, change) for where, there in sets.items()
            }
    return found


def mean_of_training_set(model: InferenceGenerator) -> Tensor:
    """The mean maps (8, 1, 1) of what the run was trained on."""
    cfg = model.config
    source = open_source(cfg.data, cfg.training.seed)
    train, _ = split_entries(source, cfg.data, cfg.model.align, cfg.training.seed)
    return mean_maps(source, train)


# -- page ----------------------------------------------------------------------------------


def quality_page(
    results: Sequence[Result], argv: Sequence[str], variants: Mapping[str, Sequence[str]]
) -> str:
    """Markdown: what ran, and a table for each thing that the runs are judged on."""
    first, start = results[0], results[0].start
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = list(dict.fromkeys(one.variant for one in results))
    lines = [
        "# How good the maps get\n",
        f"- **Hardware**: {device_name(device)}",
        f"- **Software**: {', '.join(f'{name} {version}' for name, version in versions().items())}",
        f"- **Command**: `python launch/benchmark.py quality {shlex.join(argv)}`",
        f"- **Data**: {start['source']}; {start['train_samples']} entries to train on, {start['image_size']} px; "
        f"batch {start['global_batch']}",
        f"- **Network**: {network_of(first.model)}, {start['parameters']['generator'] / 1e6:.1f} M parameters",
        "- Mean absolute errors of maps in [0, 1], mean angle between normals, SSIM; × flat: the angle over that of flat",
        "  normals; re-rendered: radiance under 16 fixed lamps, in log space, its sharpness over the true maps' (below 1:",
        "  blurred); the last weights\n",
        *variants_table(results),
    ]
    for where in dict.fromkeys(where for one in results for where in one.rows):
        lines += [f"\n## {where[0].upper()}{where[1:]}\n", *table(results, where)]
    lines += [
        "\n## Variants\n",
        *(f"- `{name}`: {' '.join(variants[name]) or 'as it is'}" for name in names),
        "",
    ]
    return "\n".join(lines)


def network_of(model: InferenceGenerator) -> str:
    """What was trained, in a few words."""
    m = model.config.model
    encoder = m.encoder_backbone if m.encoder_type == "resnet" else f"U-Net encoder {m.encoder_channels}"
    return f"{encoder}, transformer {m.transformer_dim} wide, {m.transformer_depth} deep"


def variants_table(results: Sequence[Result]) -> list[str]:
    """A row a run: how long it trained, and how the GAN's two sides stood in the end."""
    rows = [["run", "steps", "ms a step", *(title for _, title in RIVALS)]]
    for one in results:
        rivals = [one.last(name) for name, _ in RIVALS]
        shown = ["" if value is None else f"{value:.3f}" for value in rivals]
        rows.append([one.name, f"{one.model.step:,}", f"{one.ms:.1f}", *shown])
    return markdown(rows)


def table(results: Sequence[Result], where: str) -> list[str]:
    """A row a run, one for each variant's mean over its seeds, and the mean maps' of each seed."""
    rows = [["run", *(title for _, title, _ in COLUMNS), "× flat"]]
    there = [one for one in results if where in one.rows]
    of_seed = {one.seed: one for one in there}
    for seed, one in sorted(of_seed.items()):
        label = MEAN if len(of_seed) == 1 else f"{MEAN}, seed {seed}"
        rows.append(row_of(label, one.mean_maps(where), 1.0))
    for variant in dict.fromkeys(one.variant for one in there):
        those = [one for one in there if one.variant == variant]
        rows += [row_of(one.name, one.rows[where], one.over_flat(where)) for one in those]
        if len(those) > 1:
            means = {name: statistics.fmean(one.rows[where][name] for one in those) for name, _, _ in COLUMNS}
            over_flat = statistics.fmean(one.over_flat(where) for one in those)
            rows.append(row_of(f"**{variant}, mean**", means, over_flat))
    return markdown(rows)


def row_of(label: str, metrics: Mapping[str, float], over_flat: float) -> list[str]:
    """The cells of a row of `table`."""
    return [label, *(f"{metrics[name]:.{digits}f}" for name, _, digits in COLUMNS), f"{over_flat:.2f}"]


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


# -- picture -------------------------------------------------------------------------------


def picture(results: Sequence[Result], path: Path) -> None:
    """Held-out built-in materials, one below the other: what the network sees, the true maps, and every run's."""
    source, entries = held_out(results[0].model.config)
    entries = list(entries[:SHOWN])
    columns = [("view", views_of(results[0].model, source, entries))]
    for one in results:
        cameras = [cameras_of(one.model, source, entry, as_they_are)[0] for entry in entries]
        pred, true = predict(entries, cameras, one.model, source)
        columns += [("true", maps_of(true))] if len(columns) == 1 else []
        columns.append((one.name, maps_of(pred)))
    width = sum(cells[0].shape[1] for _, cells in columns)
    sheet = Image.new("RGB", (width, LABEL + CELL * len(entries)), "white")
    draw, left = ImageDraw.Draw(sheet), 0
    for label, cells in columns:
        draw.text((left + 3, 2), label, fill="black", font=ImageFont.load_default(11))
        sheet.paste(Image.fromarray(np.vstack(cells)), (left, LABEL))
        left += cells[0].shape[1]
    sheet.save(path, quality=88)


def views_of(model: InferenceGenerator, source: Any, entries: Sequence[Any]) -> list[np.ndarray]:
    """Each entry's first view as the network sees it."""
    found = []
    for entry in entries:
        views = torch.from_numpy(np.array(source.load(entry)[0]))
        cameras = torch.from_numpy(source.cameras(entry)) if model.on_plane else None
        found.append(thumbnail(model.seen(views, cameras)[0] / 255, CELL))
    return found


def maps_of(maps: Tensor) -> list[np.ndarray]:
    """Each material's four maps (B, 8, S, S) beside each other."""
    stored = as_stored(maps).cpu()
    return [
        np.hstack([thumbnail(one[part].expand(3, -1, -1), CELL) for part in MAP_SLICES.values()])
        for one in stored
    ]
