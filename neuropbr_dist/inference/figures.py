"""Metrics of predictions, for a person: a table on the terminal, and of several materials files with one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from neuropbr_dist.config import LossConfig
from neuropbr_dist.files import write_json, write_text
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.objectives import MAP_SLICES, MetricSums, ReconstructionLoss
from neuropbr_dist.objectives.perceptual import Perceptual
from neuropbr_dist.table import aligned

JSON_NAME, TABLE_NAME = "metrics.json", "metrics.md"
COLUMNS = {
    "albedo": "albedo_mae", "roughness": "roughness_mae", "metallic": "metallic_mae", "normals, °": "normal_angle_mean",
    "albedo SSIM": "albedo_ssim", "re-rendered RMSE": "relit_rmse", "re-rendered SSIM": "relit_ssim",
}  # fmt: skip
"""Columns of the file's table: mean absolute errors, mean angle, similarity, and how it looks under sixteen lamps."""
Metrics = Mapping[str, float]


def measured(pred: Tensor, maps: Tensor, device: torch.device, perceptual: Perceptual | None) -> MetricSums:
    """Return the metrics of one prediction, as in validation (see `MetricSums.result`).

    Args:
        pred: (8, S, S) or (8, 1, 1) float.
        maps: the true maps, uint8 (8, S, S).
    """
    # The loss itself isn't reported: with the run's own weights, custom losses would have to be found and run.
    sums = MetricSums(ReconstructionLoss(LossConfig()), device, perceptual)
    target = decode_maps(maps[None].to(device))
    sums.update(pred[None].to(device).expand_as(target), target)
    return sums


@dataclass
class Figures:
    """Those of several materials, and of mean maps in the predictions' place.

    Args:
        mean: (8, 1, 1) maps; None: there are none to compare with.
        mean_of: which materials' means they are.
    """

    mean: Tensor | None = None
    mean_of: str = ""
    rows: dict[str, Metrics] = field(default_factory=dict)
    _sums: MetricSums | None = None
    _baseline: MetricSums | None = None

    def add(self, name: str, sums: MetricSums, maps: Tensor) -> None:
        """Add a material's metrics; see `measured`."""
        self.rows[name] = sums.result()
        self._sums = added(self._sums, sums)
        if self.mean is not None:
            baseline = measured(self.mean, maps, sums.tensor().device, sums.perceptual)
            self._baseline = added(self._baseline, baseline)

    def means(self) -> tuple[Metrics, Metrics | None]:
        """Return the means over the materials, and those of mean maps."""
        assert self._sums is not None
        return self._sums.result(), None if self._baseline is None else self._baseline.result()

    def text(self) -> str:
        """Return the means as a table for the terminal."""
        return table(*self.means())

    def write(self, folder: Path, title: str) -> list[str]:
        """Write a row a material, and the means; return the files' names."""
        found, baseline = self.means()
        rows = dict(self.rows) | {"mean": found}
        if baseline is not None:
            rows[f"mean maps of {self.mean_of}, flat normals"] = baseline
        lines = [["", *COLUMNS]] + [
            [name, *(f"{metrics[column]:.4g}" for column in COLUMNS.values())]
            for name, metrics in rows.items()
        ]
        text = "\n".join(
            f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]]
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / TABLE_NAME, f"# {title}\n\n{text}\n")
        write_json(folder / JSON_NAME, {"title": title, "rows": rows}, indent=2)
        return [TABLE_NAME, JSON_NAME]


def added(sums: MetricSums | None, more: MetricSums) -> MetricSums:
    """Return sums of both; `sums` grows in place."""
    if sums is None:
        sums = MetricSums(more.reconstruction, more.tensor().device, more.perceptual)
    sums.tensor().add_(more.tensor())
    return sums


def table(metrics: Metrics, baseline: Metrics | None = None) -> str:
    """Return errors and similarity of each map, normals' angle and how the material looks re-rendered, for a terminal.

    Args:
        baseline: of mean maps and flat normals.
    """
    head = ["", "MAE", "RMSE", "PSNR", "SSIM"]
    rows = [
        [
            name, f"{metrics[f'{name}_mae']:.4f}", f"{metrics[f'{name}_rmse']:.4f}",
            f"{metrics[f'{name}_psnr']:.2f} dB", f"{metrics[f'{name}_ssim']:.4f}",
        ]
        for name in MAP_SLICES
    ]  # fmt: skip
    if baseline is not None:
        head.append("mean maps' MAE")
        for row, name in zip(rows, MAP_SLICES, strict=True):
            row.append(f"{baseline[f'{name}_mae']:.4f}")
    flat, guessed = "", ""
    if baseline is not None:
        flat = f" (flat normals: {baseline['normal_angle_mean']:.2f}° mean)"
        guessed = f" (mean maps: {shaded(baseline)})"
    angles = [f"{metrics[f'normal_angle_{name}']:.2f}° {name}" for name in ("mean", "median", "p95")]
    return "\n".join(
        [
            *aligned([head, *rows], numbers=True),
            f"normal angle  {', '.join(angles)}{flat}",
            f"re-rendered   {shaded(metrics)}{guessed}",
        ]
    )


def shaded(metrics: Metrics) -> str:
    """Return how alike the materials look under sixteen lamps."""
    lpips = f", LPIPS {metrics['lpips']:.3f}" if "lpips" in metrics else ""
    return f"log RMSE {metrics['relit_rmse']:.3f}, SSIM {metrics['relit_ssim']:.3f}{lpips}"
