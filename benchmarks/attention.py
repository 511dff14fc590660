"""Backends of attention at the model's shape."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.options import fields_of, measurement
from benchmarks.setting import need_gpu, write_figures
from neuropbr_dist import kernels
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.config import TrainConfig
from neuropbr_dist.data.sources import BUILTIN_SIZE
from neuropbr_dist.kernels.attention import flash_attention, plain_attention
from neuropbr_dist.models import size_multiple

BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FlashAttention-2": SDPBackend.FLASH_ATTENTION}


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py attention`."""
    p = measurement(__doc__, prog)
    p.add_argument("--tokens", type=int, metavar="N", help="default: the model's, 49,152 at 2048 px")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print a row a backend and shape."""
    args = parser(prog).parse_args(argv)
    sized = {"data.image_size": "--tokens says how many there are; leave one out"} if args.tokens else {}
    cfg = fields_of(args, sized).configuration()
    device = need_gpu("attention")
    write_figures(args.out, {"rows": measure(args.tokens or tokens_of(cfg), shapes_of(cfg), device)})


def tokens_of(cfg: TrainConfig) -> int:
    """Return the tokens of all three views."""
    return 3 * ((cfg.data.image_size or BUILTIN_SIZE) // size_multiple(cfg.model)) ** 2


def shapes_of(cfg: TrainConfig) -> list[tuple[int, int]]:
    """Return heads and their width: the model's, and as much in half as many heads."""
    heads = cfg.model.transformer_num_heads
    width = cfg.model.transformer_dim // heads
    return [(heads, width), *([(heads // 2, 2 * width)] if heads > 1 else [])]


def measure(tokens: int, shapes: Sequence[tuple[int, int]], device: torch.device) -> list[dict[str, Any]]:
    """Forward and backward ms and TFLOP/s of each backend, bf16, one sample; prints a table.

    From packed queries, keys and values to their packed gradient, as the model has them.
    """
    rows = []
    backends = [*BACKENDS, *(["FlashAttention-4"] if kernels.flash_installed() else [])]
    print("backend           heads x width   forward ms  TFLOP/s   backward ms  TFLOP/s")
    for heads, width in shapes:
        flops = 4 * heads * width * tokens**2
        for name in backends:
            qkv = torch.randn(
                1, tokens, 3, heads, width, device=device, dtype=torch.bfloat16, requires_grad=True
            )
            run = partial(attend, name, qkv)
            out = run()
            grad = torch.randn_like(out)
            forward = median_ms(run)
            backward = median_ms(partial(torch.autograd.grad, out, qkv, grad, retain_graph=True))
            rows.append(
                {
                    "backend": name,
                    "heads": heads,
                    "width": width,
                    "forward_ms": forward,
                    "backward_ms": backward,
                }
            )
            print(
                f"{name:17} {heads:5} x {width:<5}  {forward:11.1f}  {flops / forward / 1e9:7.0f}"
                f"  {backward:12.1f}  {2.5 * flops / backward / 1e9:7.0f}",
                flush=True,
            )
    return rows


def attend(backend: str, qkv: Tensor) -> Tensor:
    """(B, N, 3, H, D) -> (B, N, H, D) by this backend."""
    if backend not in BACKENDS:
        return flash_attention(qkv)[0]
    with sdpa_kernel(BACKENDS[backend]):
        return plain_attention(qkv)


def median_ms(run: Callable[[], object], repeats: int = 7) -> float:
    """Median of `repeats` after two warm-ups, by the device's clock."""
    times = []
    for _ in range(repeats + 2):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        run()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended))
    return statistics.median(times[2:])
