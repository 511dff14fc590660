"""Samples that several ranks share by rows: which numbers of ranks can, and what that makes of the others' counts."""

from __future__ import annotations

import math

from neuropbr_dist.cluster import Environment
from neuropbr_dist.config import ModelConfig
from neuropbr_dist.errors import UserError
from neuropbr_dist.models import size_multiple
from neuropbr_dist.objectives.ssim import WINDOW
from neuropbr_dist.strip import strip_rows

LEAST_PATCHES = 3
"""Rows of a strip at the discriminator's lowest resolution: its last convolutions shorten the last strip and reach on."""


def groups_of(world: int, sample_ranks: int) -> int:
    """Return how many groups of ranks that share a sample there are; see `check_sharing`."""
    return world // sample_ranks


def place_of(env: Environment, sample_ranks: int) -> tuple[int, int]:
    """Return the number of groups that share a sample, and which of them this rank is in."""
    return groups_of(env.world_size, sample_ranks), env.rank // sample_ranks


def rows_of(env: Environment, sample_ranks: int, side: int) -> tuple[int, int] | None:
    """Return the first row of this rank's strip of every sample and the one after its last; None: it has whole ones."""
    if sample_ranks == 1:
        return None
    return strip_rows(env.rank % sample_ranks, sample_ranks, side)


def check_sharing(model: ModelConfig, world: int, sample_ranks: int, side: int | None = None) -> None:
    """Raise a UserError where samples can't be shared by `sample_ranks` of `world` ranks; it says how many could.

    Args:
        side: of the pictures in pixels; None: not known yet.
    """
    found = fault(model, world, sample_ranks, side)
    if found:
        allowed = [str(n) for n in range(1, world + 1) if not fault(model, world, n, side)]
        raise UserError(
            f"training.sample_ranks = {sample_ranks}: {found}; allowed on {world} rank(s): {', '.join(allowed)}"
        )


def fault(model: ModelConfig, world: int, sample_ranks: int, side: int | None) -> str:
    """Return why so many of the ranks can't share a sample; empty where they can."""
    if sample_ranks == 1:
        return ""
    if world % sample_ranks:
        return f"it doesn't divide the {world} rank(s)"
    heads = model.transformer_num_heads
    if model.use_transformer and heads % sample_ranks:
        return f"it doesn't divide model.transformer_num_heads = {heads}"
    if side is None:
        return ""
    multiple, least = rows_needed(model)
    if side % (sample_ranks * multiple) or side // sample_ranks < least:
        return (
            f"strips of {side} px / {sample_ranks} = {side / sample_ranks:g} rows, but networks and losses need a "
            f"multiple of {multiple} rows, {least} or more"
        )
    return ""


def rows_needed(model: ModelConfig) -> tuple[int, int]:
    """Return what a strip's rows must be a multiple of, and how many they must be."""
    stride = 2**model.discriminator_n_layers if model.use_gan else 1
    multiple = math.lcm(size_multiple(model), stride)
    least = max(WINDOW // 2 + 1, LEAST_PATCHES * stride if model.use_gan else 0)
    return multiple, -(-least // multiple) * multiple
