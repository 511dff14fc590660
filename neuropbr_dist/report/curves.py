"""From a run's metrics to the charts of its page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from neuropbr_dist.materials.channels import MAP_SLICES
from neuropbr_dist.report.folder import RunFolder

MEAN_MAPS = "mean_maps/"
"""Beginning of the names that say how good the training set's mean maps are: once, at the run's start."""
MOST_POINTS = 400
"""Most points of one line in a chart; longer ones are averaged."""
Points = list[tuple[float, float | None]]


@dataclass(frozen=True)
class Line:
    """One column of `metrics.jsonl` as a line in a chart."""

    column: str
    name: str
    style: str = "train"
    """`train` (grey), `val` (accent), and `val-2`, `val-3`, `train-2` for others beside them."""
    scale: float = 1.0

    def points(self, run: RunFolder) -> Points:
        """Return the line's values; one of `MEAN_MAPS` goes all the way through."""
        found: Points = [(step, None if y is None else y * self.scale) for step, y in run.column(self.column)]
        if self.column.startswith(MEAN_MAPS) and found:
            return [(0, found[-1][1]), (run.step, found[-1][1])]
        return found


def validated(metric: str) -> list[Line]:
    """Return the lines of a metric of validation, and of what mean maps have of it."""
    return [Line(f"val/{metric}", "validation", "val"), Line(f"{MEAN_MAPS}{metric}", "mean maps", "train-2")]


def charts(run: RunFolder) -> list[dict[str, Any]]:
    """Return groups of charts, `{"title", "charts": [{"title", "unit", "log", "lines"}]}`, empty ones left out.

    A line is `{"name", "style", "points": [[step, value or None], …]}`.
    """
    groups = {
        "Losses": losses(),
        "Each map": [chart for name in MAP_SLICES for chart in map_charts(name)],
        "Normals": [
            chart("Normal angle", "°", Line("train/normal_angle", "train"),
                  Line("val/normal_angle_mean", "mean", "val"),
                  Line("val/normal_angle_median", "median", "val-2"),
                  Line("val/normal_angle_p95", "95th percentile", "val-3"),
                  Line(f"{MEAN_MAPS}normal_angle_mean", "a flat map's mean", "train-2")),
            chart("Normals within", "%",
                  *(Line(f"val/normal_angle_under_{name.replace('.', '_')}", f"{name}°", style, 100)
                    for name, style in (("11.25", "val"), ("22.5", "val-2"), ("30", "val-3")))),
        ],
        "Under sixteen lamps": [
            chart("Re-rendered · RMSE of log radiance", "", *validated("relit_rmse")),
            chart("Re-rendered · SSIM of log radiance", "", *validated("relit_ssim")),
            chart("Re-rendered · sharpness (true: 1)", "", *validated("relit_sharpness")),
            chart("Re-rendered · LPIPS", "", *validated("lpips")),
        ],
        "Optimisation": [
            chart("Learning rate", "", Line("train/lr", "generator", "val"),
                  Line("train/D_lr", "discriminator", "train")),
            chart("Gradient norm", "", Line("train/G_grad_norm", "generator", "val"),
                  Line("train/D_grad_norm", "discriminator", "train"), log=True),
            chart("Updates skipped, in all", "", Line("train/skipped_generator", "generator", "val"),
                  Line("train/skipped_discriminator", "discriminator", "train")),
        ],
        "Speed and memory": speeds(run),
    }  # fmt: skip
    custom = sorted({key for line in run.metrics for key in line if key.startswith("train/custom_")})
    groups["Losses"] += [chart(key.removeprefix("train/custom_"), "", Line(key, "train")) for key in custom]
    filled = [{"title": title, "charts": draw(run, found)} for title, found in groups.items()]
    return [group for group in filled if group["charts"]]


def chart(title: str, unit: str, *lines: Line, log: bool = False, row: str = "") -> dict[str, Any]:
    """Return one chart: its `lines`, unit, whether its axis is logarithmic, and the row of the page that it
    stands in."""
    return {"title": title, "unit": unit, "log": log, "row": row, "lines": lines}


def losses() -> list[dict[str, Any]]:
    """Return the charts of what is minimised, and of the two losses that play against each other."""
    return [
        chart("Generator's loss", "", Line("train/G_loss", "train"), Line("val/loss", "validation", "val")),
        chart("Adversarial losses", "", Line("train/D_loss", "discriminator", "val"),
              Line("train/G_gan_loss", "generator", "train")),
        chart("Feature matching", "", Line("train/G_feature_matching", "train")),
    ]  # fmt: skip


def map_charts(name: str) -> list[dict[str, Any]]:
    """Return the charts of a map: mean absolute error (training's L1 of normals counts in [-1, 1]: halved
    here), RMSE, PSNR and SSIM."""
    title, scale = name.capitalize(), 0.5 if name == "normal" else 1.0
    train_ssim = [Line("train/ssim", "train")] if name == "albedo" else []
    return [
        chart(f"{title} · error", "", Line(f"train/l1_{name}", "train", scale=scale),
              *validated(f"{name}_mae"), Line(f"val/{name}_rmse", "validation, RMSE", "val-2"), row="error"),
        chart(f"{title} · PSNR", "dB", *validated(f"{name}_psnr"), row="psnr"),
        chart(f"{title} · SSIM", "", *train_ssim, *validated(f"{name}_ssim"), row="ssim"),
    ]  # fmt: skip


def speeds(run: RunFolder) -> list[dict[str, Any]]:
    """Return the charts of throughput, waiting and memory; a figure that the page doesn't know yet gets a
    chart of its own."""
    known = {
        "samples_per_s": ("Throughput", "samples/s", 1.0),
        "ms_per_step": ("Time a step", "ms", 1.0),
        "mfu": ("Model FLOPs utilisation", "%", 100.0),
        "data_wait": ("Waiting for data", "%", 100.0),
    }
    memory = ("memory_gib", "reserved_gib")
    names = {
        key.removeprefix("speed/"): None for line in run.metrics for key in line if key.startswith("speed/")
    }
    found = [
        chart(title, unit, Line(f"speed/{name}", "", "val", scale))
        for name, (title, unit, scale) in known.items()
        if name in names
    ]
    found.append(
        chart("Peak memory of a rank", "GiB", Line("speed/memory_gib", "in use", "val"),
              Line("speed/reserved_gib", "reserved", "train"))
    )  # fmt: skip
    others = [name for name in names if name not in known and name not in memory]
    return found + [chart(name.replace("_", " "), "", Line(f"speed/{name}", "", "val")) for name in others]


def draw(run: RunFolder, wanted: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the charts that have any value, their lines filled in."""
    found = []
    for spec in wanted:
        lines: list[dict[str, Any]] = []
        full: list[Points] = []
        for line in spec["lines"]:
            points = line.points(run)
            # Off the GPU all memory is in use: one line, not two.
            twin = any(points == drawn for drawn in full)
            if any(y is not None for _, y in points) and not twin:
                full.append(points)
                dots = line.column.startswith("val/")
                lines.append({"name": line.name, "style": line.style, "dots": dots, "points": thin(points)})
        flat = spec["title"].startswith("Updates skipped") and not any(
            y for line in lines for _, y in line["points"]
        )
        if lines and not flat:
            found.append(spec | {"lines": lines})
    return found


def thin(points: Points) -> Points:
    """Return at most `MOST_POINTS`, each the mean of the finite values it stands for, at the last one's step."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return [(step, _rounded(y)) for step, y in points]
    thinned: Points = []
    for i in range(0, len(points), size):
        part = points[i : i + size]
        values = [y for _, y in part if y is not None]
        thinned.append((part[-1][0], _rounded(sum(values) / len(values)) if values else None))
    return thinned


def _rounded(value: float | None) -> float | None:
    """Round to six significant digits: fewer bytes in the page."""
    return None if value is None else float(f"{value:.6g}")


def marks(run: RunFolder) -> list[dict[str, Any]]:
    """Return the steps at which something happened: restarts, the GAN's start, skipped updates."""
    found = [
        {
            "step": start["step"],
            "kind": "start",
            "text": f"{start['world_size']} rank{'s' if start['world_size'] != 1 else ''}",
        }
        for start in run.starts[1:]
        if start["step"] > 0
    ]
    gan = [step for step, value in run.column("train/D_loss") if value is not None]
    if gan and gan[0] > (run.metrics[0]["step"] if run.metrics else 0):
        before = [line["step"] for line in run.metrics if line["step"] < gan[0]]
        if any("train/G_loss" in line for line in run.metrics if line["step"] < gan[0]):
            found.append({"step": max(before, default=0), "kind": "gan", "text": "GAN starts"})
    last = 0.0
    for line in run.metrics:
        skipped = sum(line.get(f"train/skipped_{part}") or 0 for part in ("generator", "discriminator"))
        if "train/skipped_generator" in line and skipped > last:
            text = f"{skipped - last:.0f} skipped"
            found.append({"step": line["step"], "kind": "skip", "text": text})
        last = max(last, skipped)
    return found
