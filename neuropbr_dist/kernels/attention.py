"""Softmax attention over packed queries, keys and values: FlashAttention-4 where it is installed, else PyTorch's.

At the model's shape (49,152 tokens, 32 heads of 64) cuDNN, PyTorch's own choice on a Hopper card, is a
fifth slower both ways (`benchmarks/`). The package is wrapped as two operations, so that torch.compile,
selective activation checkpointing and FSDP see one node and need nothing of its inside.

cuDNN is asked for whole tiles of tokens only. Of the last one's missing half its gradient kernels for Hopper take the
scores as 0: where a query's scores are all below -88, as they come to be in training, exp(0 - logsumexp) is infinite and the
gradient NaN, of losses that are sound (pytorch/pytorch#196678; `benchmarks/results/2026-12-01-attention-nan-h200.md`).
"""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from neuropbr_dist.kernels.dispatch import enabled

PACKAGE = "flash_attn.cute"
CAPABILITIES = ((9, 0),)
"""Compute capabilities of the cards on which FlashAttention-4 was measured to be the faster one."""
MOST_WIDTH = 128  # of a head
TILE = 128
"""Tokens that cuDNN's gradient kernels take at once."""
ANY_LENGTH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""PyTorch's backends that are sound for any number of tokens."""
FEWEST_TOKENS = 8192  # 1,024 px have 12,288; at 3,072 cuDNN took 0.8 ms both ways and this 1.0


def attention(qkv: Tensor, dropout: float = 0.0) -> Tensor:
    """Return `softmax(q k^T / sqrt(D)) v` a head.

    Args:
        qkv: (B, N, 3, H, D): queries, keys and values of N tokens, H heads of width D.
        dropout: of the attention weights, in [0, 1).

    Returns:
        (B, N, H, D)
    """
    if runs_flash(qkv, dropout):
        return flash_attention(qkv.contiguous())[0]
    return plain_attention(qkv, dropout)


def plain_attention(qkv: Tensor, dropout: float = 0.0) -> Tensor:
    """Return `attention` by whichever backend PyTorch chooses; of those for `ANY_LENGTH` where tokens don't fill tiles."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    with sdpa_kernel(ANY_LENGTH) if qkv.is_cuda and qkv.shape[1] % TILE else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2)


def runs_flash(qkv: Tensor, dropout: float = 0.0) -> bool:
    """Return whether `attention` takes FlashAttention-4: installed, bf16, a card it was measured on, no dropout."""
    if not qkv.is_cuda or qkv.dtype != torch.bfloat16 or dropout:
        return False
    fits = qkv.shape[1] >= FEWEST_TOKENS and qkv.shape[-1] <= MOST_WIDTH and qkv.shape[-1] % 8 == 0
    return fits and enabled() and flash_pays()


@torch.compiler.assume_constant_result
def flash_pays() -> bool:
    """Return whether the package is there, this rank's card among `CAPABILITIES`, and no `training.deterministic`.

    Its backward adds in no fixed order. Compiled code asks once.
    """
    return flash_gains() and flash_installed() and not torch.are_deterministic_algorithms_enabled()


def flash_gains() -> bool:
    """Return whether FlashAttention-4 was measured to be the faster one on a card like this rank's."""
    return torch.cuda.get_device_capability() in CAPABILITIES


@cache
def flash_installed() -> bool:
    """Return whether the package `flash-attn-4` is there."""
    return find_spec("flash_attn") is not None and find_spec(PACKAGE) is not None


@cache
def interface() -> ModuleType:
    """Return the package's functions. Kernels that it compiles are kept beside torch.compile's, for the next start."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(Path(cache_dir()) / "flash_attention"))
    # Its compiler's own deprecations, at each kernel it compiles.
    warnings.filterwarnings("ignore", module=r"(flash_attn|cutlass)\.")
    from flash_attn.cute import interface as found

    return found


@torch.library.custom_op("neuropbr_dist::flash_attention", mutates_args=(), device_types="cuda")
def flash_attention(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Run FlashAttention-4: (B, N, 3, H, D) contiguous -> (B, N, H, D), and each query's log of its sum of
    exponentials (B, H, N)."""
    out, lse, *_ = interface()._flash_attn_fwd(*qkv.unbind(2), return_lse=True)
    return out, lse


@torch.library.custom_op("neuropbr_dist::flash_attention_backward", mutates_args=(), device_types="cuda")
def flash_attention_backward(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    """Return the gradient of `qkv`, packed like it."""
    dqkv = torch.empty_like(qkv)
    dq, dk, dv = dqkv.unbind(2)
    interface()._flash_attn_bwd(*qkv.unbind(2), out, dout.contiguous(), lse, dq=dq, dk=dk, dv=dv)
    return dqkv


@flash_attention.register_fake
def _(qkv: Tensor) -> tuple[Tensor, Tensor]:
    b, n, _, h, d = qkv.shape
    return qkv.new_empty(b, n, h, d), qkv.new_empty(b, h, n, dtype=torch.float32)


@flash_attention_backward.register_fake
def _(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    return torch.empty_like(qkv)


def _keep(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, dout: Tensor, _dlse: Tensor) -> Tensor:
    return flash_attention_backward(dout, *ctx.saved_tensors)


flash_attention.register_autograd(_gradient, setup_context=_keep)

# Whatever attention may run as: what selective activation checkpointing keeps.
OPERATIONS = (
    torch.ops.neuropbr_dist.flash_attention.default,
    *(
        getattr(torch.ops.aten, name).default
        for name in (
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
        )
    ),
)
