"""What `quality.py` writes: Markdown tables and a picture of its runs."""

from __future__ import annotations

import argparse
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from neuropbr_dist.config import TrainConfig, from_yaml
from neuropbr_dist.data.open import fill_cache, open_samples
from neuropbr_dist.monitor.look_files import TRUE, look_keys, look_steps
from neuropbr_dist.monitor.run_logs import HISTORY, METRICS, run_log
from neuropbr_dist.objectives import MAP_SLICES
from neuropbr_dist.training.baseline import mean_maps_metrics
from neuropbr_dist.training.facts import device_name, versions

CELL = 192
"""Side in pixels of one map in the picture."""


@dataclass
class Result:
    """One finished run."""

    name: str
    folder: Path
    sets: list[str]
    stopped: bool

    def lines(self) -> list[dict[str, Any]]:
        return run_log(self.folder, METRICS).read()

    def validations(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if "val/loss" in line]

    def last(self, name: str) -> float | None:
        """The last logged value of this name."""
        found = [line[name] for line in self.lines() if name in line]
        return float(found[-1]) if found else None


# -- tables --------------------------------------------------------------------------------

OVERALL = (("loss", 3), ("l1", 4), ("psnr", 2), ("ssim", 3), ("normal_angle_mean", 2))
PER_MAP = (("mae", 4), ("psnr", 2), ("ssim", 3))


def quality_page(args: argparse.Namespace, argv: Sequence[str], results: list[Result]) -> str:
    """Markdown: what ran, all variants, and each map of each variant."""
    facts = run_log(results[0].folder, HISTORY).read()[0]
    shared = f", {args.per_gpu} variants on each at a time" if args.per_gpu > 1 else ""
    data = f"{args.builtin} built-in materials" if args.builtin else "the given set"
    mean = mean_maps(results[0])
    return "\n".join(
        [
            f"# Held-out validation after at most {args.minutes:g} minutes, {data}\n",
            f"- **Hardware**: {args.gpus_each} x {device_name(torch.device('cuda' if torch.cuda.is_available() else 'cpu'))} a variant{shared}",
            f"- **Software**: {', '.join(f'{name} {found}' for name, found in versions().items())}",
            f"- **Command**: `python launch/benchmark.py quality {shlex.join(argv)}`",
            f"- **Data**: {facts['train_samples']} entries to train on, {facts['val_samples']} held out, "
            f"{facts['image_size']} px; micro-batch {facts['micro_batch']}, global batch {facts['global_batch']}",
            f"- **Networks**: {networks(results[0], facts)}\n",
            "Before training, then best (`*`: by validation loss) and last. `mean maps`: the training set's mean, what one",
            "learns without looking at the views. D loss and adversarial loss of G: the last logged (hinge: a D loss of 2 is a draw,",
            "0 an outright win).\n",
            *overall_table(results, mean),
            "\n## Each map: MAE, PSNR in dB, SSIM at the best validation\n",
            *map_table(results, mean),
            "\n## Variants\n",
            *(f"- `{result.name}`: {' '.join(result.sets) or 'the defaults'}" for result in results),
            "",
        ]
    )


def config_of(result: Result) -> TrainConfig:
    """The configuration that the run resolved and saved."""
    path = result.folder / "config.yaml"
    return from_yaml(path.read_text(), str(path))


def networks(result: Result, facts: dict[str, Any]) -> str:
    """What was trained, in a few words."""
    m = config_of(result).model
    encoder = m.encoder_backbone if m.encoder_type == "resnet" else f"U-Net encoder {m.encoder_channels}"
    millions = " + ".join(f"{count / 1e6:.1f} M" for count in facts["parameters"].values())
    return f"{encoder}, transformer {m.transformer_dim} wide, {m.transformer_depth} deep; first variant {millions} parameters"


def mean_maps(result: Result) -> dict[str, float]:
    """Validation of the training set's mean maps, on the same samples."""
    cfg = config_of(result)
    samples = open_samples(cfg)
    fill_cache(samples.source)
    return mean_maps_metrics(cfg, samples)


def best_of(result: Result) -> dict[str, Any]:
    """The line of the validation with the smallest loss, the untrained one left out."""
    return min(result.validations()[1:], key=lambda line: float(line["val/loss"]))


def overall_table(results: list[Result], mean: dict[str, float]) -> list[str]:
    """A row a variant: before → best* → last."""
    head = [
        "variant",
        "steps",
        "ms a step",
        *(name for name, _ in OVERALL),
        "D loss",
        "G adversarial",
        "best at step",
    ]
    rows = [head, ["---"] * len(head)]
    rows.append(["mean maps", "", "", *(f"{mean[name]:.{n}f}" for name, n in OVERALL), "", "", ""])
    for result in results:
        first, best, last = result.validations()[0], best_of(result), result.validations()[-1]
        speeds = [float(line["speed/ms_per_step"]) for line in result.lines() if "speed/ms_per_step" in line]
        rivals = [result.last(f"train/{name}") for name in ("D_loss", "G_gan_loss")]
        steps = f"{last['step']}{' (stopped)' if result.stopped else ''}"
        row = [f"`{result.name}`", steps, f"{statistics.median(speeds):.0f}"]
        for name, n in OVERALL:
            before, at_best, at_end = (float(line[f"val/{name}"]) for line in (first, best, last))
            row.append(f"{before:.{n}f} → {at_best:.{n}f}* → {at_end:.{n}f}")
        row += ["" if value is None else f"{value:.3f}" for value in rivals]
        rows.append([*row, str(best["step"])])
    return ["| " + " | ".join(row) + " |" for row in rows]


def map_table(results: list[Result], mean: dict[str, float]) -> list[str]:
    """A row a variant, a column a map."""
    rows = [["variant", *MAP_SLICES, "normal angle mean / median / p95"], ["---"] * (len(MAP_SLICES) + 2)]
    before = {
        name.removeprefix("val/"): value
        for name, value in results[0].validations()[0].items()
        if name.startswith("val/")
    }
    named = {"before training": before, "mean maps": mean}
    for result in results:
        named[f"`{result.name}`"] = {
            name.removeprefix("val/"): value
            for name, value in best_of(result).items()
            if name.startswith("val/")
        }
    for label, values in named.items():
        cells = [" / ".join(f"{float(values[f'{m}_{x}']):.{n}f}" for x, n in PER_MAP) for m in MAP_SLICES]
        angles = [f"{float(values[f'normal_angle_{name}']):.1f}°" for name in ("mean", "median", "p95")]
        rows.append([label, *cells, " / ".join(angles)])
    return ["| " + " | ".join(row) + " |" for row in rows]


# -- picture -------------------------------------------------------------------------------


def picture(results: list[Result], path: Path) -> None:
    """Each held-out sample that the runs kept: its views, true maps, and every variant's last maps."""
    font, text = ImageFont.load_default(15), 24
    keys = look_keys(results[0].folder)
    lines = len(results) + 2
    sheet = Image.new("RGB", ((CELL + 4) * len(MAP_SLICES) * len(keys), (CELL + text) * lines), (24, 25, 28))
    draw = ImageDraw.Draw(sheet)
    for column, key in enumerate(keys):
        left, looks = column * (CELL + 4) * len(MAP_SLICES), results[0].folder / "looks" / key
        files = [
            (f"{key}: views", [looks / f"view_{i}.png" for i in range(3)]),
            ("true", [looks / TRUE / f"{m}.png" for m in MAP_SLICES]),
        ]
        for result in results:
            last = list(look_steps(result.folder, key).items())[-1]
            files.append((f"{result.name}, step {last[0]}", [last[1] / f"{m}.png" for m in MAP_SLICES]))
        for row, (label, pictures) in enumerate(files):
            top = row * (CELL + text)
            draw.text((left + 4, top + 3), label, fill=(232, 233, 236), font=font)
            for i, file in enumerate(pictures):
                cell = Image.open(file).convert("RGB").resize((CELL, CELL), Image.Resampling.BOX)
                sheet.paste(cell, (left + i * (CELL + 4), top + text))
    sheet.save(path)
