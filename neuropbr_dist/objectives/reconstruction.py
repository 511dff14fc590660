"""Distance of predicted maps from the true ones: the generator's loss without its adversarial term."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neuropbr_dist.config import LossConfig
from neuropbr_dist.kernels import full_precision
from neuropbr_dist.materials.channels import ALBEDO, MAP_SLICES, NORMAL
from neuropbr_dist.materials.relighting import Relighting
from neuropbr_dist.objectives.normals import normal_angle, normal_loss
from neuropbr_dist.objectives.registry import custom_loss, load_custom_module
from neuropbr_dist.objectives.rendering import rendering_loss, square_of
from neuropbr_dist.objectives.ssim import ssim, ssim_of_planes
from neuropbr_dist.strip import Strip


def mean_per_map(channels: Tensor) -> dict[str, Tensor]:
    """Average `(B, 8)` values per channel -> name to `(B,)`, the mean over each map's channels."""
    return {name: channels[:, part].mean(1) for name, part in MAP_SLICES.items()}


def l1(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the mean absolute error of each map: `(B, 8, H, W)` -> name to `(B,)`. Normals count in [-1, 1]."""
    return mean_per_map((pred - target).abs().mean((2, 3)))


def pixel_terms(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the terms that look at one pixel at a time: maps `(B, 8, H, W)` -> name to `(B,)`.

    L1 of each map, `normal_loss`, and `normal_angle`, the mean angle in degrees, without gradient.
    """
    terms = {f"l1_{name}": value for name, value in l1(pred, target).items()}
    terms["normal_loss"] = normal_loss(pred[:, NORMAL], target[:, NORMAL])
    terms["normal_angle"] = normal_angle(pred[:, NORMAL], target[:, NORMAL]).mean((1, 2))
    return terms


class ReconstructionLoss:
    """Weighted sum of L1 per map, 1 - SSIM of the albedo, 1 - cos of the normals, rendering and custom losses.

    `total = w_l1 (w_albedo l1_albedo + w_roughness l1_roughness + w_metallic l1_metallic
    + w_normal_map l1_normal) + w_ssim ssim_loss + w_normal normal_loss + w_render render_loss + custom`:
    the training guide's hybrid loss, and `rendering_loss`.

    Raises:
        UserError: `loss.custom_module` is no Python file, or `loss.custom` names a
            loss that isn't registered.
    """

    def __init__(self, loss: LossConfig):
        if loss.custom_module:
            load_custom_module(loss.custom_module)
        self.custom = {f"custom_{name}": custom_loss(name) for name in loss.custom}
        self.weights = {
            "l1_albedo": loss.w_l1 * loss.w_albedo,
            "l1_roughness": loss.w_l1 * loss.w_roughness,
            "l1_metallic": loss.w_l1 * loss.w_metallic,
            "l1_normal": loss.w_l1 * loss.w_normal_map,
            "ssim_loss": loss.w_ssim,
            "normal_loss": loss.w_normal,
            "render_loss": loss.w_render,
            **{f"custom_{name}": weight for name, weight in loss.custom.items()},
        }
        self.pixel_terms, self.ssim_of_planes, self.rendering_loss = (
            pixel_terms,
            ssim_of_planes,
            rendering_loss,
        )

    def compile(self, compiled: Callable[[Callable], Callable]) -> None:
        """Put `compiled(function)` in place of each function of whole pictures."""
        self.pixel_terms, self.ssim_of_planes = compiled(self.pixel_terms), compiled(self.ssim_of_planes)
        self.rendering_loss = compiled(self.rendering_loss)

    def __call__(
        self,
        pred: Tensor,
        target: Tensor,
        relighting: Relighting | None = None,
        strip: Strip | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted total `(B,)` and the unweighted terms, detached, name to `(B,)`, of maps `(B, 8, H, W)`.

        Computed in float32 whatever the autocast state (float64 stays float64). The
        terms also hold `normal_angle`, the mean angle in degrees, for the log; SSIM
        and the rendering loss are left out where their weight is 0.

        Args:
            relighting: where lamps and eyes of the rendering loss are; only needed where it has a weight.
            strip: where the maps are a strip of rows of larger ones: what comes back is its part, and all strips' parts
                add up to the loss of the whole. None: they are whole.
        """
        share = 1.0 if strip is None else 1 / strip.count  # of all pixels
        with torch.autocast(pred.device.type, enabled=False):
            pred, target = full_precision(pred), full_precision(target)
            terms = {name: share * value for name, value in self.pixel_terms(pred, target).items()}
            angle = terms.pop("normal_angle")
            if self.weights["ssim_loss"] > 0:
                values = ssim(pred[:, ALBEDO], target[:, ALBEDO], self.ssim_of_planes, strip)
                terms["ssim_loss"] = share - values.mean(1)
            if self.weights["render_loss"] > 0:
                assert relighting is not None
                lamps, eyes, corners = relighting
                ours, theirs = (square_of(maps, corners, strip) for maps in (pred, target))
                terms["render_loss"] = share * self.rendering_loss(ours, theirs, lamps, eyes)
            if self.custom:  # which may look at any pixel
                pred, target = (maps if strip is None else strip.whole(maps) for maps in (pred, target))
            terms |= {name: share * loss(pred, target) for name, loss in self.custom.items()}
            total = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum(0)
        return total, {name: value.detach() for name, value in terms.items()} | {"normal_angle": angle}
