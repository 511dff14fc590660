"""Triton's kernels compiled for a Hopper GPU where there is none, and not launched: `test_kernels` runs this file.

Triton's interpreter runs Python that its compiler refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from neuropbr_dist import kernels
from neuropbr_dist.kernels import conv_triton, maps, merge, norm_act_triton, upsample, views
from neuropbr_dist.kernels.norm_act import GroupNormAct
from tests.support.distributed import ROOT
from tests.support.twins import picture

FILES = sorted((ROOT / "neuropbr_dist" / "kernels").glob("*_triton.py"))
KERNELS = {
    name
    for file in FILES
    for name, value in vars(import_module(f"{kernels.__name__}.{file.stem}")).items()
    if isinstance(value, JITFunction) and name.endswith("_kernel")
}
compiled: set[str] = set()


class Hopper:
    """What Triton asks a driver before it compiles."""

    get_current_device = get_current_stream = staticmethod(lambda *_: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))


@pytest.fixture(autouse=True)
def compile_only(monkeypatch, tmp_path):
    def in_place_of_a_launch(kernel: JITFunction, grid: Any) -> Callable[..., Any]:
        compiled.add(kernel.fn.__name__)
        return partial(kernel.run, grid=grid, warmup=True)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", Hopper())
    monkeypatch.setattr(JITFunction, "__getitem__", in_place_of_a_launch)


def forward_and_backward(function: Callable[..., Any], *inputs: Tensor) -> None:
    found = function(*(x.detach().requires_grad_() for x in inputs))
    found = found if isinstance(found, tuple) else (found,)
    torch.autograd.backward(found, [torch.ones_like(y) for y in found])


def features(*shape: int) -> Tensor:
    return picture(*shape, dtype=torch.bfloat16)


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize(("slope", "residual"), [*product([None, 0.0], [False, True])])
def test_group_norm(monkeypatch, long, slope, residual):
    monkeypatch.setattr(norm_act_triton, "PROGRAMS", 1)  # one that takes all turns
    monkeypatch.setattr(norm_act_triton, "LONG", 1 if long else 10**6)
    channel = [picture(1, 64, 1, 1).flatten() for _ in range(2)]
    more = [features(1, 64, 16, 16)] if residual else []

    def norm(x: Tensor, weight: Tensor, bias: Tensor, *more: Tensor) -> Tensor:
        return GroupNormAct.apply(x, weight, bias, *more or [None], 8, 1e-5, slope)

    forward_and_backward(norm, features(1, 64, 16, 16), *channel, *more)


def test_upsampling():
    forward_and_backward(upsample.Upsample2x.apply, features(1, 64, 4, 4))


def test_pooling_and_mean():
    forward_and_backward(views.PassAndMean.apply, features(3, 64, 4, 4))
    for mean in (True, False):
        forward_and_backward(partial(pooled, mean=mean), features(3, 64, 4, 4))


def pooled(x: Tensor, *, mean: bool) -> Any:
    return views.MaxPool.apply(x, mean)


@pytest.mark.parametrize("kind", merge.COPIES)
def test_merging_views(kind):
    weight = torch.ones(3, 1, 4, 4)
    forward_and_backward(lambda x: merge.KernelPassAndMerge.apply(x, weight, kind), features(3, 64, 4, 4))


def test_bias_and_activation():
    y = features(2, 64, 8, 8).detach()
    conv_triton.add_bias_act_(y, torch.zeros(64), 0.2)
    conv_triton.act_gradient(y, y, 0.2)


def test_maps_in_their_ranges():
    forward_and_backward(maps.ActivateMaps.apply, features(1, 8, 8, 8))


def test_no_kernel_is_left_out():
    assert compiled == KERNELS and len(FILES) == 6
