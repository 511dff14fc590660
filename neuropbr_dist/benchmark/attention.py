"""Backends of scaled-dot-product attention at the model's shape."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS = ((32, 64), (16, 128))  # heads x width: the default, and the same width in fewer heads
BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def measure(tokens: int, device: torch.device) -> list[dict[str, Any]]:
    """Forward and backward ms and TFLOP/s of each backend, bf16, one sample; prints a table."""
    rows = []
    print("backend  heads x width   forward ms  TFLOP/s   backward ms  TFLOP/s")
    for heads, width in HEADS:
        for name, backend in BACKENDS.items():
            q, k, v = (
                torch.randn(1, heads, tokens, width, device=device, dtype=torch.bfloat16, requires_grad=True)
                for _ in range(3)
            )
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(q, k, v)
                grad = torch.randn_like(out)
                forward = median_ms(partial(F.scaled_dot_product_attention, q, k, v))
                backward = median_ms(partial(torch.autograd.grad, out, (q, k, v), grad, retain_graph=True))
            flops = 4 * heads * width * tokens**2
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
                f"{name:8} {heads:5} x {width:<5}  {forward:11.1f}  {flops / forward / 1e9:7.0f}"
                f"  {backward:12.1f}  {2.5 * flops / backward / 1e9:7.0f}",
                flush=True,
            )
    return rows


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
