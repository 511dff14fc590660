"""Activation checkpointing of a network's segments.

A segment's `forward` is replaced on the instance, so parameter names stay the
canonical ones. Always non-reentrant: ZeRO 2 and 3 fail on the reentrant kind.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from neuropbr_dist.kernels import ATTENTION_OPERATIONS
from neuropbr_dist.models.norm import StepBatchNorm2d, no_statistics


def _keep_attention(_ctx: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in ATTENTION_OPERATIONS else CheckpointPolicy.PREFER_RECOMPUTE


def has_batch_statistics(module: nn.Module) -> bool:
    """Return whether a training pass through it notes statistics of the batch."""
    return any(isinstance(m, StepBatchNorm2d) for m in module.modules())


def _has_attention(module: nn.Module) -> bool:
    return any(hasattr(m, "qkv") for m in module.modules())


def _has_dropout(module: nn.Module) -> bool:
    rates = [getattr(m, "attn_drop", 0) or getattr(m, "rate", 0) for m in module.modules()]
    return any(rates) or any(isinstance(m, nn.Dropout) and m.p > 0 for m in module.modules())


def keeps_attention(module: nn.Module, kind: str) -> bool:
    """Return whether recomputation of this `kind` picks single operations inside `module`."""
    return kind == "selective" and _has_attention(module)


def checkpoint_segment(module: nn.Module, kind: str) -> None:
    """Recompute `module`'s activations in backward.

    Args:
        module: a segment; its `forward` is replaced.
        kind: `selective` (outputs of scaled-dot-product attention are kept), `full`, or
            `split`: full, for one sample of the batch at a time, so that backward holds
            one sample's activations. A segment with batch statistics is never split.
    """
    inner = module.forward
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": _has_dropout(module)}
    if keeps_attention(module, kind):
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_attention)
    elif has_batch_statistics(module):
        # Without this the running statistics would move twice (measured).
        options["context_fn"] = lambda: (nullcontext(), no_statistics())
    split = kind == "split" and not has_batch_statistics(module)

    def forward(*args: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return inner(*args)
        if split:
            samples = zip(*(a.split(1) for a in args), strict=True)
            return torch.cat([checkpoint(inner, *sample, **options) for sample in samples])
        return checkpoint(inner, *args, **options)

    module.forward = forward  # type: ignore[method-assign]
