"""Losses over what a PatchGAN makes of maps, its logits and its features: one value per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.kernels import full_precision
from neuropbr_dist.strip import Strip

GanKind = Literal["hinge", "bce"]


def discriminator_loss(
    real: Tensor,
    fake: Tensor,
    kind: GanKind,
    *,
    sigmoid: bool = False,
    smoothing: float = 0.0,
    strip: Strip | None = None,
) -> Tensor:
    """Return the discriminator's loss: logits `(B, ...)` of true and generated maps -> `(B,)`, mean over patches.

    `hinge`: max(0, 1 - real) + max(0, 1 + fake). `bce`: cross-entropy with targets
    `1 - smoothing` (one-sided label smoothing, Salimans et al. 2016) and 0, summed (upstream
    has no factor 1/2 either). `sigmoid`: the discriminator ends in a sigmoid, so that
    `bce` gets probabilities.

    Args:
        strip: where the logits `(B, 1, h, W)` are a strip's: what comes back is its part of the mean. None: they are all.

    Raises:
        ValueError: the kind is unknown, or `hinge` together with `sigmoid`.
    """
    _check(kind, sigmoid)
    real, fake = full_precision(real), full_precision(fake)
    if kind == "hinge":
        loss = _per_sample(F.relu(1 - real)) + _per_sample(F.relu(1 + fake))
    else:
        loss = _cross_entropy(real, 1.0 - smoothing, sigmoid) + _cross_entropy(fake, 0.0, sigmoid)
    return loss if strip is None else strip.share(fake) * loss


def generator_loss(
    fake: Tensor, kind: GanKind, *, sigmoid: bool = False, strip: Strip | None = None
) -> Tensor:
    """Return the generator's loss: logits `(B, ...)` of its maps -> `(B,)`, mean over patches.

    `hinge`: -fake. `bce`: cross-entropy with target 1 (non-saturating).

    Args:
        strip: as `discriminator_loss`'s.

    Raises:
        ValueError: the kind is unknown, or `hinge` together with `sigmoid`.
    """
    _check(kind, sigmoid)
    fake = full_precision(fake)
    loss = -_per_sample(fake) if kind == "hinge" else _cross_entropy(fake, 1.0, sigmoid)
    return loss if strip is None else strip.share(fake) * loss


def feature_matching_loss(
    fake: Sequence[Tensor], true: Sequence[Tensor], strip: Strip | None = None
) -> Tensor:
    """Return how far features of generated maps are from those of the true ones: L1, the mean over each block's
    elements, then over blocks, `(B,)` (Wang et al. 2018, pix2pixHD).

    No gradient goes to the true ones.

    Args:
        fake, true: outputs of the discriminator's blocks, `(B, C, h, w)` each.
        strip: as `discriminator_loss`'s.
    """
    losses = []
    for ours, theirs in zip(fake, true, strict=True):
        # In the features' own precision, whose difference has the right sign, and the gradient is that alone: float32
        # copies of them would be as large as all else that the discriminator keeps.
        apart = (ours - theirs.detach()).abs()
        apart = apart.mean(1, keepdim=True, dtype=torch.promote_types(apart.dtype, torch.float32))
        losses.append(_per_sample(apart) if strip is None else strip.share(apart) * _per_sample(apart))
    return torch.stack(losses).mean(0)


def _check(kind: str, sigmoid: bool) -> None:
    if kind not in ("hinge", "bce"):
        raise ValueError(f"unknown adversarial loss {kind!r}; known: hinge, bce")
    if kind == "hinge" and sigmoid:
        raise ValueError("the hinge loss takes logits, not a sigmoid's probabilities")


def _per_sample(patches: Tensor) -> Tensor:
    return patches.flatten(1).mean(1)


def _cross_entropy(scores: Tensor, target: float, sigmoid: bool) -> Tensor:
    if not sigmoid:
        return _per_sample(target * F.softplus(-scores) + (1 - target) * F.softplus(scores))
    goal = torch.full_like(scores, target)
    with torch.autocast(scores.device.type, enabled=False):  # refuses binary_cross_entropy
        return _per_sample(F.binary_cross_entropy(scores, goal, reduction="none"))
