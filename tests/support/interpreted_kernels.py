"""Triton's kernels against their plain twins, in its interpreter on a CPU: `test_kernels` runs this file."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from neuropbr_dist.kernels import (
    conv_triton,
    maps,
    merge,
    norm_act_triton,
    upsample,
    upsample_triton,
    views,
    views_triton,
)
from neuropbr_dist.kernels.norm_act import GroupNormAct, plain_group_norm_act
from neuropbr_dist.strip import Strip
from tests.support.twins import compare, picture


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Small pictures are cut as large ones are: rows into pieces, pixels into chunks of several tiles, merged in turns."""
    for kernels in (views_triton, upsample_triton):
        monkeypatch.setattr(kernels, "BLOCK", 16)
    monkeypatch.setattr(norm_act_triton, "TILE", 1024)
    monkeypatch.setattr(norm_act_triton, "PROGRAMS", 3)
    monkeypatch.setattr(norm_act_triton, "GRADIENT_TILE", 512)
    monkeypatch.setattr(norm_act_triton, "LONG", 2)  # 2 turns for all but the last shape below
    monkeypatch.setattr(norm_act_triton, "chunks_at_once", lambda lanes: 2)


@pytest.mark.parametrize(
    ("shape", "slope", "residual"),
    [
        *product([(2, 32, 5, 7)], [None, 0.0, 0.2], [False, True]),
        ((1, 24, 9, 17), 0.2, True),
        ((3, 130, 2, 3), 0.0, True),
    ],
)
def test_group_norm_residual_and_activation(shape, slope, residual):
    groups = 2
    inputs = [picture(*shape), picture(1, shape[1], 1, 1, seed=1), picture(1, shape[1], 1, 1, seed=2)]
    inputs = [inputs[0], *(p.detach().flatten().requires_grad_() for p in inputs[1:])]
    inputs += [picture(*shape, seed=3)] if residual else []

    def ours(x, weight, bias, r=None):
        return GroupNormAct.apply(x, weight, bias, r, groups, 1e-5, slope)

    def twin(x, weight, bias, r=None):
        return plain_group_norm_act(x, weight, bias, groups, 1e-5, slope, r)

    compare(ours, twin, inputs)


class Rehearsed(Strip):
    """A strip in one process: the others' part of an exchange is what they gave when it was last rehearsed."""

    with_halo = to_heads = to_rows = None  # type: ignore[assignment]

    def __init__(self, index: int, given: list[list[Any]]) -> None:
        self.index, self.count, self.given, self.calls = index, len(given), given, 0

    def exchange(self, first, last, above, below):
        at, self.calls = self.calls, self.calls + 1
        self.given[self.index][at:] = [(first, last)]
        n, c, _, w = first.shape

        def of(index: int, side: int, rows: int) -> torch.Tensor | None:
            if not 0 <= index < self.count:
                return None
            given = self.given[index]
            return given[at][side] if len(given) > at else torch.zeros(n, c, rows, w)

        return SimpleNamespace(wait=lambda: (of(self.index - 1, 1, above), of(self.index + 1, 0, below)))

    def gathered(self, x: torch.Tensor) -> torch.Tensor:
        at, self.calls = self.calls, self.calls + 1
        self.given[self.index][at:] = [x]
        return torch.stack([mine[at] if len(mine) > at else x for mine in self.given])


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("heights", [(4, 4), (3, 3, 2)])
def test_group_norm_of_strips(heights, residual):
    """The last strip of a picture may be shorter (after the discriminator's convolutions of stride 1)."""
    groups, slope, width, given = 2, 0.2, 5, [[] for _ in heights]
    channel = [picture(1, 24, 1, 1, seed=i).detach().flatten().requires_grad_() for i in (1, 2)]
    wholes = [picture(2, 24, sum(heights), width, seed=i) for i in ((0, 3) if residual else (0,))]
    weight = picture(2, 24, sum(heights), width, seed=9).detach()

    def of_strip(index: int) -> list[torch.Tensor]:
        cut = [
            w.detach().split(heights, 2)[index].contiguous(memory_format=torch.channels_last).requires_grad_()
            for w in wholes
        ]
        more = cut[1] if residual else None
        y = GroupNormAct.apply(cut[0], *channel, more, groups, 1e-5, slope, Rehearsed(index, given))
        return [y.detach(), *torch.autograd.grad(y, [*cut, *channel], weight.split(heights, 2)[index])]

    for _ in range(2):  # the sums forward, then those backward, which need them
        for index in range(len(heights)):
            of_strip(index)
    found = list(zip(*(of_strip(index) for index in range(len(heights))), strict=True))
    more = wholes[1] if residual else None
    y = plain_group_norm_act(wholes[0], *channel, groups, 1e-5, slope, more)
    wanted = [y, *torch.autograd.grad(y, [*wholes, *channel], weight)]
    rows = 1 + len(wholes)
    joined = [torch.cat(parts, 2) for parts in found[:rows]] + [sum(parts) for parts in found[rows:]]
    for ours, theirs in zip(joined, wanted, strict=True):
        assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 5, 3, 2), (1, 8, 3, 5)])
def test_upsampling(shape):
    compare(upsample.Upsample2x.apply, upsample.plain_upsample_2x, [picture(*shape)])


@pytest.mark.parametrize("shape", [(3, 6, 4, 6), (6, 7, 3, 3)])
def test_pooling_and_mean(shape):
    x = picture(*shape)
    compare(views.PassAndMean.apply, lambda x: (x, views.mean_over_views(x)), [x])
    compare(lambda x: views.MaxPool.apply(x, True), views.max_pool_and_mean, [x])
    compare(lambda x: views.MaxPool.apply(x, False), views.max_pool, [x])


@pytest.mark.parametrize("heights", [(4, 4), (2, 6, 4)])
def test_pooling_of_strips(heights):
    whole, given = (
        torch.randint(0, 9, (3, 4, sum(heights), 6)).float().requires_grad_(),
        [[] for _ in heights],
    )
    wanted = F.max_pool2d(whole, 3, 2, 1)
    weight = torch.randn_like(wanted).split([rows // 2 for rows in heights], 2)

    def of_strip(index):
        own = whole.detach().split(heights, 2)[index].clone().requires_grad_()
        y = views.StripMaxPool.apply(own, Rehearsed(index, given))
        return y.detach(), *torch.autograd.grad(y, own, weight[index])

    for _ in range(2):  # the rows forward, then those backward
        for index in range(len(heights)):
            of_strip(index)
    pooled, gradients = zip(*(of_strip(index) for index in range(len(heights))), strict=True)
    assert torch.equal(torch.cat(pooled, 2), wanted)
    (dx,) = torch.autograd.grad(wanted, whole, torch.cat(weight, 2))
    torch.testing.assert_close(torch.cat(gradients, 2), dx)


@pytest.mark.parametrize("kind", merge.COPIES)
@pytest.mark.parametrize("shape", [(3, 4, 6, 8), (6, 5, 7, 5)])
def test_merging_views_that_show_a_place_in_part(shape, kind):
    x, weight = (
        picture(*shape),
        torch.rand(shape[0], 1, *shape[2:], generator=torch.Generator().manual_seed(1)),
    )
    weight = torch.where(weight < 0.4, 0.0, weight)  # there are pixels that no view shows

    def ours(x):
        return merge.KernelPassAndMerge.apply(x, weight, kind)

    def twin(x):
        return merge.PassAndMerge.apply(x, weight.to(x.dtype), kind)

    compare(ours, twin, [x])
    equal = torch.ones(*shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    compare(ours, twin, [equal])


def test_the_first_of_equal_pixels_gets_the_poolings_gradient():
    x = torch.randint(0, 3, (3, 4, 5, 6), generator=torch.Generator().manual_seed(0)).float()
    compare(lambda x: views.MaxPool.apply(x, True), views.max_pool_and_mean, [x.requires_grad_()])


def test_pooling_hands_on_what_is_not_a_number():
    x = picture(3, 2, 6, 6).detach()
    x[1, 0, 2, 3] = float("nan")
    found, _ = views.MaxPool.apply(x, True)
    assert torch.equal(found.isnan(), F.max_pool2d(x, 3, 2, 1).isnan())


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(2, 7, 5, 6), (3, 64, 8, 8)])
def test_bias_and_activation_and_the_gradient_before_it(shape, slope):
    x, bias = picture(*shape).detach(), picture(1, shape[1], 1, 1, seed=2).detach().flatten()
    wanted = F.leaky_relu(x - 1 + bias[:, None, None], slope)
    y = conv_triton.add_bias_act_(x - 1, bias, slope)
    torch.testing.assert_close(y, wanted)
    dy = picture(*shape, seed=1).detach()
    dz, total = conv_triton.act_gradient(dy, y, slope)
    torch.testing.assert_close(dz, torch.where(y > 0, dy, dy * slope))
    torch.testing.assert_close(total, dz.double().sum((0, 2, 3)).float())


@pytest.mark.parametrize("shape", [(1, 8, 3, 5), (2, 8, 24, 25)])
def test_maps_in_their_ranges(shape):
    compare(maps.ActivateMaps.apply, maps.plain_activate_maps, [picture(*shape)])


def test_a_normal_without_length_gets_a_bounded_gradient():
    raw = torch.zeros(1, 8, 2, 2, requires_grad=True)
    compare(maps.ActivateMaps.apply, maps.plain_activate_maps, [raw])
