"""Memory plans: for each segment, what backward finds kept and what it computes again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from neuropbr_dist.errors import UserError

Recompute = Mapping[str, str]
"""Patterns of segment names to none, selective, full or split; the last that matches counts."""

GENERATOR_PLANS: dict[str, Recompute] = {
    # Everything is kept.
    "fast": {},
    # High resolutions are computed again: most of the bytes for little of the time.
    "balanced": {
        "encoder.stem": "full",
        "encoder.layer[12]": "full",
        "encoder.levels.[0123]": "full",
        "decoder.blocks.*": "full",
    },
    # All is computed again but attention, half of all time; the encoder a view at a time.
    "low": {"encoder.*": "split", "fusion.*": "selective", "decoder.*": "full"},
}
PLANS = tuple(GENERATOR_PLANS)  # the fastest first


def recompute_patterns(plan: str, activation_checkpointing: str, part: str) -> Recompute:
    """Return what is computed again in a network (`generator` or `discriminator`).

    Args:
        plan: a name of `PLANS`.
        activation_checkpointing: `plan`, or one kind for every segment of the generator.
    """
    if part == "discriminator" and activation_checkpointing in ("plan", "selective"):
        return {}  # its activations are small beside the generator's
    if activation_checkpointing == "plan":
        return GENERATOR_PLANS[plan]
    return {"*": activation_checkpointing}


@contextmanager
def memory_told(side: int, samples: int, plan: str) -> Iterator[None]:
    """Tell in one line that the device's memory is too small for what runs inside: torch tells it in a traceback.

    Args:
        side: of the pictures, in pixels.
        samples: at a time.
        plan: the memory plan; it may have been chosen while others used less of the device.

    Raises:
        UserError: in place of torch's error, with what takes less.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        remedies = [f"training.memory={slower}" for slower in PLANS[PLANS.index(plan) + 1 :]]
        remedies += [f"a training.batch_size below {samples}"] if samples > 1 else []
        raise UserError(
            f"{samples} sample(s) of {side} px at a time don't fit into the device's memory under memory plan {plan}; use "
            f"{', '.join([*remedies, '--engine fsdp on several GPUs or training.sample_ranks'])} (docs/training.md). {str(error).splitlines()[0]}"
        ) from error
