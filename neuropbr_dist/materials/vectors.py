"""Vectors in torch, along the third dimension from the end: (..., 3, H, W)."""

from __future__ import annotations

from torch import Tensor

_SHORTEST = 1e-6


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return inner products (..., 1, H, W) of vectors (..., 3, H, W), which broadcast against each other."""
    return (a * b).sum(-3, keepdim=True)


def unit(vector: Tensor) -> Tensor:
    """Return vectors (..., 3, H, W) made unit; one shorter than 1e-6 stays short, so that gradients stay finite."""
    return vector * dot(vector, vector).clamp_min(_SHORTEST**2).rsqrt()


def column(numbers: Tensor) -> Tensor:
    """Return numbers (..., N) as (..., N, 1, 1), to be combined with (..., N, H, W)."""
    return numbers[..., None, None]
