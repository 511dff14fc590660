"""How far predicted maps are from the true ones: the generator's loss without its adversarial term."""

from __future__ import annotations

import torch
from torch import Tensor

from neuropbr_dist.config import LossConfig
from neuropbr_dist.objectives.maps import ALBEDO, NORMAL, full_precision, mean_per_map
from neuropbr_dist.objectives.normals import normal_angle, normal_loss
from neuropbr_dist.objectives.registry import custom_loss, load_custom_module
from neuropbr_dist.objectives.ssim import ssim


def l1(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Mean absolute error of each map: `(B, 8, H, W)` -> name to `(B,)`. Normals count in [-1, 1]."""
    return mean_per_map((pred - target).abs().mean((2, 3)))


class ReconstructionLoss:
    """Weighted sum of L1 per map, 1 - SSIM of the albedo, 1 - cos of the normals and custom losses.

    `total = w_l1 (w_albedo l1_albedo + w_roughness l1_roughness + w_metallic l1_metallic
    + w_normal_map l1_normal) + w_ssim ssim_loss + w_normal normal_loss + custom`,
    the training guide's hybrid loss.

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
            **{f"custom_{name}": weight for name, weight in loss.custom.items()},
        }

    def __call__(self, pred: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps `(B, 8, H, W)` -> total `(B,)` and the unweighted terms, detached, name to `(B,)`.

        Computed in float32 whatever the autocast state (float64 stays float64). The
        terms also hold `normal_angle`, the mean angle in degrees, for the log; SSIM
        is left out where its weight is 0.
        """
        with torch.autocast(pred.device.type, enabled=False):
            pred, target = full_precision(pred), full_precision(target)
            terms = {f"l1_{name}": value for name, value in l1(pred, target).items()}
            if self.weights["ssim_loss"] > 0:
                terms["ssim_loss"] = 1 - ssim(pred[:, ALBEDO], target[:, ALBEDO]).mean(1)
            terms["normal_loss"] = normal_loss(pred[:, NORMAL], target[:, NORMAL])
            terms |= {name: loss(pred, target) for name, loss in self.custom.items()}
            total = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum(0)
        logged = {name: value.detach() for name, value in terms.items()}
        logged["normal_angle"] = normal_angle(pred[:, NORMAL], target[:, NORMAL]).mean((1, 2))
        return total, logged
