"""How good `plane.py`'s runs are: on held-out built-in materials and another set, with a view missing, with shifted cameras."""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.judging import (
    all_shifted,
    as_they_are,
    cameras_of,
    evaluate,
    held_out,
    jittered,
    judged_sets,
    one_missing,
    predict,
    thumbnail,
)
from benchmarks.runs import ms_per_step
from neuropbr_dist.config import TransformConfig
from neuropbr_dist.data.builtin.cache import sample_cameras
from neuropbr_dist.data.device import normalise_views
from neuropbr_dist.inference import load_generator
from neuropbr_dist.inference.generator import InferenceGenerator
from neuropbr_dist.materials.channels import as_stored
from neuropbr_dist.materials.rectify import rectify
from neuropbr_dist.monitor.run_logs import HISTORY, run_log
from neuropbr_dist.training.facts import device_name, versions

SHOWN, CELL, LABEL = 6, 112, 16
COLUMNS = (
    ("albedo_mae", "albedo", 4), ("roughness_mae", "roughness", 4), ("metallic_mae", "metallic", 4),
    ("normal_angle_mean", "normals, °", 2), ("albedo_ssim", "SSIM of the albedo", 3),
)  # fmt: skip


@dataclass
class Judged:
    """One run and how good it is."""

    name: str
    """VARIANT-SEED."""
    model: InferenceGenerator
    start: dict[str, Any]
    """Its line in `history.jsonl`."""
    ms: float
    """Median of a step."""
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    """What it is judged on -> metrics (`MetricSums.result`)."""

    @property
    def variant(self) -> str:
        return self.name.rsplit("-", 1)[0]

    @property
    def steps(self) -> int:
        return self.model.step


def judge(name: str, folder: Path, real: Sequence[str] | None, samples: Sequence[str] | None) -> Judged:
    """Judge a run's newest weights.

    Args:
        name: VARIANT-SEED.
        real: renders and maps of another set, with cameras.
        samples: of `real`, in a row of their own.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_generator(folder).to(device)
    found = Judged(name, model, run_log(folder, HISTORY).read()[0], ms_per_step(folder))
    for where, (source, entries) in judged_sets(model.config, real, samples).items():
        found.rows[where] = evaluate(model, source, entries, as_they_are)
        if model.on_plane:
            found.rows[f"{where}, a view missing"] = evaluate(model, source, entries, one_missing)
            found.rows[f"{where}, jittered by up to 4/512"] = evaluate(model, source, entries, jittered)
            found.rows[f"{where}, each shifted by 4/512"] = evaluate(model, source, entries, all_shifted)
    return found


def rectification_ms(sides: Sequence[tuple[int, int]] = ((2048, 1), (256, 8))) -> dict[str, float]:
    """What rectifying a micro-batch takes on this device: side x batch -> milliseconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        sides = [(256, 1)]
    found = {}
    for side, batch in sides:
        views = torch.randint(256, (batch, 3, 3, side, side), dtype=torch.uint8, device=device)
        cameras = torch.from_numpy(sample_cameras(0, 0).encoded("clean")).repeat(batch, 1, 1)
        seconds = []
        for _ in range(12):
            settle(device)
            began = time.perf_counter()
            rectify(normalise_views(views, TransformConfig()), cameras, side)
            settle(device)
            seconds.append(time.perf_counter() - began)
        found[f"{side} px x {batch}"] = 1000 * statistics.median(seconds[2:])
    return found


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- for a person --------------------------------------------------------------------------


def table(found: Sequence[Judged], argv: Sequence[str]) -> str:
    """Markdown: what ran, and a table for each thing that the runs are judged on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first = found[0].start
    lines = [
        "# Views as they are, and rectified by their cameras\n",
        f"- **Hardware**: {device_name(device)}",
        f"- **Software**: {', '.join(f'{name} {version}' for name, version in versions().items())}",
        f"- **Command**: `python launch/benchmark.py plane {shlex.join(argv)}`",
        f"- **Data**: {first['source']}; {first['train_samples']} entries to train on, {first['image_size']} px; "
        f"batch {first['global_batch']}",
        f"- **Network**: {first['parameters']['generator'] / 1e6:.1f} M parameters",
        "- Mean absolute errors of maps in [0, 1], mean angle between normals, SSIM; the last weights\n",
    ]
    for where in dict.fromkeys(where for one in found for where in one.rows):
        lines += [f"\n## {where[0].upper()}{where[1:]}\n"]
        lines += [f"| run | steps | ms | {' | '.join(title for _, title, _ in COLUMNS)} |"]
        lines += [f"|---|---|---|{'---|' * len(COLUMNS)}"]
        for one in found:
            if where in one.rows:
                values = [f"{one.rows[where][metric]:.{digits}f}" for metric, _, digits in COLUMNS]
                lines.append(f"| {one.name} | {one.steps:,} | {one.ms:.1f} | {' | '.join(values)} |")
    return "\n".join([*lines, ""])


def picture(found: Sequence[Judged], path: Path) -> None:
    """Held-out built-in materials: a view, the same rectified, and three maps by the first run, the last, and true."""
    shown_runs, after = list({one.name: one for one in (found[0], found[-1])}.values()), found[-1]
    source, entries = held_out(after.model.config)
    entries = list(entries[:SHOWN])
    predicted = []
    for one in shown_runs:
        cameras = [cameras_of(one.model, source, entry, as_they_are)[0] for entry in entries]
        pred, maps = predict(entries, cameras, one.model, source)
        predicted.append(as_stored(pred).cpu())
    predicted.append(as_stored(maps).cpu())
    rows = []
    for i, entry in enumerate(entries):
        views = torch.from_numpy(np.array(source.load(entry)[0]))
        known_cameras = torch.from_numpy(source.cameras(entry))
        seen = after.model.seen(views, known_cameras if after.model.on_plane else None)
        cells = [thumbnail(views[0] / 255, CELL), thumbnail(seen[0] / 255, CELL)]
        for part in (slice(0, 3), slice(3, 4), slice(5, 8)):
            cells += [thumbnail(maps[i, part].expand(3, -1, -1), CELL) for maps in predicted]
        rows.append(np.hstack(cells))
    names = [*(one.name for one in shown_runs), "true"]
    titles = [
        "view",
        "rectified",
        *(f"{kind}, {name}" for kind in ("albedo", "rough", "normal") for name in names),
    ]
    sheet = Image.new("RGB", (CELL * len(titles), LABEL + CELL * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, title in enumerate(titles):
        draw.text((i * CELL + 2, 2), title, fill="black", font=ImageFont.load_default(10))
    sheet.paste(Image.fromarray(np.vstack(rows)), (0, LABEL))
    sheet.save(path)
