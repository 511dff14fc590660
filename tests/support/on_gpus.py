"""What tests marked `gpu` share."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def exact_convolutions() -> AbstractContextManager[None]:
    """Convolutions in float32 itself, so that a GPU can be held against a CPU.

    TF32, which cuDNN takes by default, rounds what goes in to ten bits. Rounding it so on a CPU moves a small trained
    generator's maps by up to 2e-4, and its normals, whose slopes it widens, by up to 2e-3.
    """
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
