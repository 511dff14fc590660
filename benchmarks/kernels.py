"""The hand-written kernels on a GPU: their error against float64, and their time beside plain and compiled torch.

    python benchmarks/kernels.py --out kernels.json

Errors at 256 px against the twin in float64, times at the default preset's own shapes (2048 px, three
views, bf16), forward and backward apart; medians. The floor is the bytes each pass must move (inputs
read once, outputs written once) at this card's copy rate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attention import median_ms
from benchmarks.setting import need_gpu, write_figures
from neuropbr_dist import kernels
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser
from neuropbr_dist.kernels.conv import conv
from neuropbr_dist.kernels.merge import merged
from neuropbr_dist.kernels.norm_act import plain_group_norm_act
from neuropbr_dist.kernels.upsample import plain_upsample_2x
from neuropbr_dist.kernels.views import mean_over_views


class Case(NamedTuple):
    """One operation at one shape."""

    name: str
    ours: Callable[..., Tensor | tuple[Tensor, ...]]
    twin: Callable[..., Tensor | tuple[Tensor, ...]]
    shapes: Callable[[int], list[tuple[int, ...]]]
    """Of the inputs, by the picture's side; vectors are float32, the rest bf16."""
    frozen: tuple[int, ...] = ()
    """Inputs without a gradient."""


class Pair(TypedDict):
    """An operation and its twin."""

    ours: Callable[..., Tensor | tuple[Tensor, ...]]
    twin: Callable[..., Tensor | tuple[Tensor, ...]]


def norm(groups: int, slope: float | None) -> Pair:
    """Group norm in `groups`, with an activation."""
    return {
        "ours": lambda x, w, b, r=None: kernels.group_norm_act(x, w, b, groups, 1e-5, slope, r),
        "twin": lambda x, w, b, r=None: plain_group_norm_act(
            x, w.to(x.dtype), b.to(x.dtype), groups, 1e-5, slope, r
        ),
    }


def scaled(x: Tensor, w: Tensor, scale: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """A 1x1 convolution with a frozen norm's scale and shift, residual and ReLU, in parts."""
    return F.relu(F.conv2d(x, (w * scale.view(-1, 1, 1, 1)).to(x.dtype), b.to(x.dtype)) + r)


def convolution(stride: int, padding: int, slope: float | None) -> Pair:
    """A convolution with bias, residual and activation."""

    def twin(x: Tensor, w: Tensor, b: Tensor, r: Tensor | float = 0.0) -> Tensor:
        y = F.conv2d(x, w, b.to(x.dtype), stride, padding) + r
        return y if slope is None else F.leaky_relu(y, slope)

    at = {"stride": (stride, stride), "padding": (padding, padding), "slope": slope}
    return {"ours": lambda x, w, b, r=None: conv(x, w, b, r, **at), "twin": twin}  # type: ignore[arg-type]


CASES = [
    Case("norm + ReLU, 64 channels", **norm(4, 0.0), shapes=lambda s: [(1, 64, s, s), (64,), (64,)]),
    Case(
        "norm + residual + ReLU, 256 channels",
        **norm(16, 0.0),
        shapes=lambda s: [(3, 256, s // 2, s // 2), (256,), (256,), (3, 256, s // 2, s // 2)],
    ),
    Case("norm + ReLU, 512 channels", **norm(32, 0.0), shapes=lambda s: [(1, 512, s // 8, s // 8), (512,), (512,)]),
    Case("upsampling, 128 channels", kernels.upsample_2x, plain_upsample_2x, lambda s: [(1, 128, s // 2, s // 2)]),
    Case("upsampling, 2048 channels", kernels.upsample_2x, plain_upsample_2x, lambda s: [(1, 2048, s // 16, s // 16)]),
    Case(
        "max pooling and mean",
        kernels.max_pool_and_mean,
        lambda x: (F.max_pool2d(x, 3, 2, 1), mean_over_views(x)),
        lambda s: [(3, 64, s, s)],
    ),
    Case("mean of 256 channels", kernels.pass_and_mean, lambda x: (x * 1, mean_over_views(x)), lambda s: [(3, 256, s // 2, s // 2)]),
    Case(
        "mean and maximum of 64 channels, weighed",
        lambda x, w: kernels.pass_and_merge(x, w.abs(), "max_mean"),
        lambda x, w: (x * 1, torch.cat(merged(x, w.abs(), "max_mean"), dim=1)),
        lambda s: [(3, 64, s, s), (3, 1, s, s)],
        frozen=(1,),
    ),
    Case("max pooling", kernels.max_pool, lambda x: F.max_pool2d(x, 3, 2, 1), lambda s: [(3, 64, s, s)]),
    Case(
        "stem: 7x7 of 3 channels + ReLU",
        **convolution(1, 3, 0.0),
        shapes=lambda s: [(3, 3, s, s), (64, 3, 7, 7), (64,)],
        frozen=(0,),
    ),
    Case("discriminator: 4x4 of 8 channels", **convolution(2, 1, 0.2), shapes=lambda s: [(2, 8, s, s), (64, 8, 4, 4), (64,)]),
    Case(
        "1x1 + residual + ReLU, 64 to 256",
        **convolution(1, 0, 0.0),
        shapes=lambda s: [(3, 64, s // 2, s // 2), (256, 64, 1, 1), (256,), (3, 256, s // 2, s // 2)],
    ),
    Case(
        "1x1, scaled, + residual + ReLU",
        lambda x, w, scale, b, r: conv(x, w, b, r, scale=scale, slope=0.0),
        scaled,
        lambda s: [(3, 64, s // 2, s // 2), (256, 64, 1, 1), (256,), (256,), (3, 256, s // 2, s // 2)],
    ),
]  # fmt: skip


def inputs(case: Case, side: int, dtype: torch.dtype) -> list[Tensor]:
    """Random, channels-last leaves."""
    made = []
    for i, shape in enumerate(case.shapes(side)):
        g = torch.Generator("cuda").manual_seed(i)
        x = torch.randn(*shape, device="cuda", generator=g)
        if len(shape) == 4:
            fan = shape[1] * shape[2] * shape[3] if shape[2] < 8 else 1
            x = (
                (x / fan**0.5 + (0.5 if fan == 1 else 0.0))
                .to(dtype)
                .contiguous(memory_format=torch.channels_last)
            )
        made.append(x.requires_grad_(i not in case.frozen))
    return made


def outputs(function: Callable[..., Tensor | tuple[Tensor, ...]], given: list[Tensor]) -> list[Tensor]:
    """Outputs, then the gradients of the inputs that have one."""
    out = function(*given)
    outs = list(out) if isinstance(out, tuple) else [out]
    weights = []
    for i, o in enumerate(outs):
        g = torch.Generator("cuda").manual_seed(100 + i)
        w = torch.randn(o.shape, device="cuda", generator=g).to(torch.bfloat16)
        weights.append(w.to(o.dtype).contiguous(memory_format=torch.channels_last))
    leaves = [x for x in given if x.requires_grad]
    return outs + list(torch.autograd.grad(outs, leaves, weights))


def errors(case: Case) -> tuple[float, float]:
    """Largest |x - float64| / |float64| (Frobenius) of outputs and gradients at 256 px: ours, and the bf16 twin's."""
    given = inputs(case, 256, torch.bfloat16)
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in given]
    exact = [x.detach() for x in outputs(case.twin, wide)]

    def largest(found: list[Tensor]) -> float:
        return max(
            float((a.detach().double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)
        )

    return largest(outputs(case.ours, given)), largest(outputs(case.twin, given))


def times(function: Callable[..., Tensor | tuple[Tensor, ...]], given: list[Tensor]) -> tuple[float, float]:
    """Forward, and backward alone, in ms."""
    out = function(*given)
    outs = list(out) if isinstance(out, tuple) else [out]
    weights = [torch.randn_like(o) for o in outs]
    leaves = [x for x in given if x.requires_grad]
    forward = median_ms(lambda: function(*given), 10)
    backward = median_ms(lambda: torch.autograd.grad(outs, leaves, weights, retain_graph=True), 10)
    return forward, backward


def copy_rate() -> float:
    """Bytes read and written a ms."""
    a = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    b = torch.empty_like(a)
    return 2 * a.numel() / median_ms(lambda: b.copy_(a), 20)


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py kernels`."""
    p = new_parser(__doc__ or "", prog)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    add_debug(p)
    p.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    p.add_argument("--compiled", action="store_true", help="also the twin under torch.compile")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print a line a case; write them as JSON."""
    args = parser(prog).parse_args(argv)
    need_gpu("kernels")
    rate, rows = copy_rate(), []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copies {rate / 1e9:.2f} TB/s")
    print(
        "forward / backward in ms            errors: ours, bf16 twin   ours            plain torch     compiled        floor"
    )
    for case in CASES:
        row: dict[str, Any] = {"case": case.name, "errors": errors(case)}
        given = inputs(case, 2048, torch.bfloat16)
        row["ours"] = times(case.ours, given)
        row["plain"] = times(case.twin, given)
        row["compiled"] = None
        if args.compiled:
            torch._dynamo.reset()
            row["compiled"] = times(torch.compile(case.twin, dynamic=False), given)
        out = case.ours(*given)
        size = sum(o.nbytes for o in (out if isinstance(out, tuple) else (out,)))
        row["floor"] = (size + sum(x.nbytes for x in given)) / rate
        rows.append(row)
        shown = [
            f"{t[0]:6.2f} /{t[1]:6.2f}" if t else " " * 14
            for t in (row["ours"], row["plain"], row["compiled"])
        ]
        print(
            f"{case.name:36}{row['errors'][0]:.1e} {row['errors'][1]:.1e}  {'  '.join(shown)}  {row['floor']:6.2f}",
            flush=True,
        )
        del given, out
        torch.cuda.empty_cache()
    write_figures(args.out, {"rows": rows})


if __name__ == "__main__":
    run()
