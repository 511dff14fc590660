"""What every engine does to a network's segments first: activation checkpointing, then compile."""

from __future__ import annotations

import torch
from torch import nn

from neuropbr_dist.parallel.activation import checkpoint_segment, has_batch_statistics

# Segments share one code object, and each has graphs for training, frozen and no-grad
# passes: with torch's limit of 8 most segments would run uncompiled, but for a warning.
GRAPHS_A_CODE_OBJECT = 256


def prepare_segments(segments: dict[str, nn.Module], *, recompute: str, compile_blocks: bool) -> None:
    """Activation checkpointing -> compile, in place; sharding comes after.

    Args:
        segments: from the model, in forward order.
        recompute: `none`, `selective` (attention outputs are kept) or `full`.
        compile_blocks: torch.compile each segment. Static shapes: dynamic ones
            fail on this model ("cannot determine truth value of Relational").
    """
    if compile_blocks:
        torch._dynamo.config.recompile_limit = GRAPHS_A_CODE_OBJECT
        torch._dynamo.config.accumulated_recompile_limit = 4 * GRAPHS_A_CODE_OBJECT
    for module in segments.values():
        # Batch statistics are noted in Python lists, which a compiled checkpoint
        # region can't hold: for those the compiled code goes inside.
        inside = has_batch_statistics(module)
        if compile_blocks and inside:
            compile_forward(module)
        if recompute != "none":
            checkpoint_segment(module, keep_attention=recompute == "selective")
        if compile_blocks and not inside:
            compile_forward(module)


def compile_forward(module: nn.Module) -> None:
    """The forward only: `module.compile()` would take in the engine's hooks, and FSDP2's
    hooks then leave most segments uncompiled (measured: 3 graphs of 9)."""
    module.forward = torch.compile(module.forward, dynamic=False)  # type: ignore[method-assign]
