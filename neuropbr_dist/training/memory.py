"""Memory plans: for each segment, what backward finds kept and what it computes again."""

from __future__ import annotations

from collections.abc import Mapping

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
