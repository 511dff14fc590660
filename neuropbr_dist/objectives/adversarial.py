"""Adversarial losses over a PatchGAN's logits, one value per sample."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.objectives.maps import full_precision

GanKind = Literal["hinge", "bce"]


def discriminator_loss(real: Tensor, fake: Tensor, kind: GanKind, *, sigmoid: bool = False) -> Tensor:
    """The discriminator's loss: logits `(B, ...)` of true and generated maps -> `(B,)`, mean over patches.

    `hinge`: max(0, 1 - real) + max(0, 1 + fake). `bce`: cross-entropy with targets
    1 and 0, summed (upstream has no factor 1/2 either). `sigmoid`: the discriminator
    ends in a sigmoid, so that `bce` gets probabilities.

    Raises:
        ValueError: the kind is unknown, or `hinge` together with `sigmoid`.
    """
    _check(kind, sigmoid)
    real, fake = full_precision(real), full_precision(fake)
    if kind == "hinge":
        return _per_sample(F.relu(1 - real)) + _per_sample(F.relu(1 + fake))
    return _cross_entropy(real, True, sigmoid) + _cross_entropy(fake, False, sigmoid)


def generator_loss(fake: Tensor, kind: GanKind, *, sigmoid: bool = False) -> Tensor:
    """The generator's loss: logits `(B, ...)` of its maps -> `(B,)`, mean over patches.

    `hinge`: -fake. `bce`: cross-entropy with target 1 (non-saturating).

    Raises:
        ValueError: the kind is unknown, or `hinge` together with `sigmoid`.
    """
    _check(kind, sigmoid)
    fake = full_precision(fake)
    if kind == "hinge":
        return -_per_sample(fake)
    return _cross_entropy(fake, True, sigmoid)


def _check(kind: str, sigmoid: bool) -> None:
    if kind not in ("hinge", "bce"):
        raise ValueError(f"unknown adversarial loss {kind!r}; known: hinge, bce")
    if kind == "hinge" and sigmoid:
        raise ValueError("the hinge loss takes logits, not a sigmoid's probabilities")


def _per_sample(patches: Tensor) -> Tensor:
    return patches.flatten(1).mean(1)


def _cross_entropy(scores: Tensor, is_real: bool, sigmoid: bool) -> Tensor:
    if not sigmoid:
        return _per_sample(F.softplus(-scores if is_real else scores))
    goal = torch.full_like(scores, float(is_real))
    with torch.autocast(scores.device.type, enabled=False):  # refuses binary_cross_entropy
        return _per_sample(F.binary_cross_entropy(scores, goal, reduction="none"))
