"""Validation metrics as plain sums, so that any cut into batches and ranks gives the same result.

Each rank adds up its samples, the caller all-reduces one tensor, `result` divides:

    sums = MetricSums(reconstruction, device)
    for ...: sums.update(pred, target, weight)
    dist.all_reduce(sums.tensor())
    values = sums.result()

Means are over samples. MAE, RMSE, PSNR and SSIM see every map as a picture in [0, 1]
(normals as (n + 1) / 2); the overall value is the mean over the four maps. Angle
percentiles are over all pixels and come from a histogram with 0.05 degree bins:
counts add up exactly, and the result is at most one bin off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuropbr_dist.kernels import full_precision
from neuropbr_dist.materials.channels import MAP_SLICES, NORMAL, as_stored
from neuropbr_dist.materials.relighting import Relighting
from neuropbr_dist.objectives.normals import normal_angle
from neuropbr_dist.objectives.perceptual import Perceptual
from neuropbr_dist.objectives.reconstruction import ReconstructionLoss, l1, mean_per_map
from neuropbr_dist.objectives.rendering import shaded_metrics
from neuropbr_dist.objectives.ssim import ssim

MAX_PSNR = 100.0
"""PSNR in dB given to a map without error."""
ANGLE_BIN = 0.05
"""Width in degrees of a bin of the angle histogram."""
_ANGLE_BINS = round(180 / ANGLE_BIN)
_ANGLE_LIMITS = (11.25, 22.5, 30.0)  # customary in surface-normal benchmarks; each a bin's edge
_LEAST_DETAIL = 1e-9
"""Of the true maps: black metal shows nothing under any lamp."""
_OVERALL = ["mae", "rmse", "psnr", "ssim"]
_PER_MAP = [f"{name}_{metric}" for name in MAP_SLICES for metric in _OVERALL]
_SHADED = ["relit_rmse", "relit_ssim", "relit_detail", "relit_detail_true"]
_MEANS = ["loss", "l1", *_PER_MAP, *_OVERALL, *_SHADED, "lpips", "normal_angle_mean"]
_SIZE = 1 + len(_MEANS) + _ANGLE_BINS  # total weight, weighted sums, histogram


class MetricSums:
    """Running sums of validation metrics, kept on the device until `result`.

    Args:
        reconstruction: gives the `loss` metric.
        device: where the sums live; float64 (float32 on MPS, which has nothing wider).
        perceptual: gives `lpips`; None: it is left out.
    """

    def __init__(
        self,
        reconstruction: ReconstructionLoss,
        device: torch.device | str,
        perceptual: Perceptual | None = None,
    ):
        self.reconstruction, self.perceptual = reconstruction, perceptual
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.sums = torch.zeros(_SIZE, dtype=dtype, device=device)

    @torch.no_grad()
    def update(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        relighting: Relighting | None = None,
    ) -> None:
        """Add samples: maps `(B, 8, H, W)`, `weight` `(B,)`; weight 0 leaves a sample out, None is all ones.

        Args:
            relighting: see `ReconstructionLoss`.
        """
        weight = torch.ones(len(pred), device=pred.device) if weight is None else weight
        weight = weight.to(self.sums.dtype)
        pred, target = full_precision(pred), full_precision(target)
        values = _sample_metrics(pred, target) | {"loss": self.reconstruction(pred, target, relighting)[0]}
        angles = normal_angle(pred[:, NORMAL], target[:, NORMAL])
        values["normal_angle_mean"] = angles.mean((1, 2))
        values |= shaded_metrics(pred, target)
        unknown = torch.zeros_like(values["loss"])
        values["lpips"] = self.perceptual(pred, target) if self.perceptual else unknown

        table = torch.stack([values[name] for name in _MEANS]).to(self.sums.dtype)
        counted = torch.where(weight > 0, table * weight, 0)  # a left-out sample may hold NaN
        means_end = 1 + len(_MEANS)
        self.sums[0] += weight.sum()
        self.sums[1:means_end] += counted.sum(1)
        bins = (angles / ANGLE_BIN).long().clamp(0, _ANGLE_BINS - 1)
        pixel_weight = weight[:, None, None].expand_as(bins)
        self.sums[means_end:].index_add_(0, bins.flatten(), pixel_weight.flatten())

    def tensor(self) -> Tensor:
        """Return the sums themselves, 1-D, not a copy: all-reduce (sum) this in place."""
        return self.sums

    def result(self) -> dict[str, float]:
        """Return each metric's value by its name; reads the device once.

        `loss`; `l1` (mean over maps of the loss's L1 terms, normals in [-1, 1]); `mae`, `rmse`,
        `psnr` (dB) and `ssim`, overall and per map (`albedo_psnr`, ...); `relit_rmse` and
        `relit_ssim`, see `shaded_metrics`, and `relit_sharpness`, its detail over that of the true
        maps (below 1: blurred); `lpips`, if it was asked for;
        `normal_angle_mean`, `_median` and `_p95` in degrees; `normal_angle_under_11_25`,
        `_22_5` and `_30`, the share of pixels in [0, 1].

        Raises:
            ValueError: no sample was added.
        """
        sums = self.sums.cpu().double()
        total, means, histogram = sums.split([1, len(_MEANS), _ANGLE_BINS])
        if total.item() == 0:
            raise ValueError("no sample was added to the metrics")
        result = dict(zip(_MEANS, (means / total).tolist(), strict=True))
        # One quotient of means: a sample that is smooth in truth would rule a mean of quotients.
        detail, true = (result.pop(f"relit_detail{end}") for end in ("", "_true"))
        result["relit_sharpness"] = detail / max(true, _LEAST_DETAIL)
        if self.perceptual is None:
            del result["lpips"]
        result["normal_angle_median"] = _percentile(histogram, 0.5)
        result["normal_angle_p95"] = _percentile(histogram, 0.95)
        for limit in _ANGLE_LIMITS:
            share = histogram[: round(limit / ANGLE_BIN)].sum() / histogram.sum()
            result[f"normal_angle_under_{limit:g}".replace(".", "_")] = share.item()
        return result


def _sample_metrics(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Compare maps `(B, 8, H, W)` -> L1, and MAE, RMSE, PSNR and SSIM per map and overall, each `(B,)`."""
    values = {"l1": torch.stack(list(l1(pred, target).values())).mean(0)}
    pred, target = as_stored(pred), as_stored(target)
    error = pred - target
    squares = mean_per_map(error.square().mean((2, 3)))
    metrics = {
        "mae": mean_per_map(error.abs().mean((2, 3))),
        "rmse": {name: mse.sqrt() for name, mse in squares.items()},
        "psnr": {name: _psnr(mse) for name, mse in squares.items()},
        "ssim": mean_per_map(ssim(pred, target)),
    }
    for metric, maps in metrics.items():
        values |= {f"{name}_{metric}": value for name, value in maps.items()}
        values[metric] = torch.stack(list(maps.values())).mean(0)
    return values


def _psnr(mean_square: Tensor) -> Tensor:
    return (-10 * mean_square.log10()).clamp(max=MAX_PSNR)


def _percentile(histogram: Tensor, share: float) -> float:
    """Return the angle in degrees below which `share` of the counts lie, linear inside its bin."""
    below = histogram.cumsum(0)
    wanted = share * below[-1]
    at = int(torch.searchsorted(below, wanted))
    inside = (wanted - (below[at] - histogram[at])) / histogram[at]
    return (at + inside.item()) * ANGLE_BIN
