"""Merging the views' features: against sums written out, missing views, and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neuropbr_dist.kernels import COPIES, mean_over_views, pass_and_merge
from tests.support.twins import picture

KINDS = list(COPIES)


def weights(*shape: int) -> Tensor:
    """(B * 3, 1, H, W): ones, zeros and shares; some pixels no view shows."""
    some = torch.rand(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return torch.where(some < 0.3, 0.0, torch.where(some > 0.6, 1.0, some))


def reference(x: Tensor, weight: Tensor, kind: str) -> Tensor:
    """A pixel after the other."""
    b, c, h, w = x.shape[0] // 3, *x.shape[1:]
    out = torch.zeros(b, COPIES[kind], c, h, w, dtype=x.dtype)
    for n in range(b):
        for i in range(h):
            for j in range(w):
                values, shares = x[3 * n : 3 * n + 3, :, i, j], weight[3 * n : 3 * n + 3, 0, i, j]
                seen = shares > 0
                if not seen.any():
                    continue
                share = shares[:, None] / shares.sum()
                mean = (values * share).sum(0)
                parts = [mean, values[seen].amax(0), ((values - mean).square() * share).sum(0)]
                out[n, :, :, i, j] = torch.stack(parts[: COPIES[kind]])
    return out.flatten(1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_as_written_out(kind):
    x, weight = picture(6, 3, 4, 5, dtype=torch.float64), weights(6, 1, 4, 5)
    passed, found = pass_and_merge(x, weight, kind)
    assert torch.equal(passed, x)
    torch.testing.assert_close(found, reference(x.detach(), weight, kind))
    with torch.no_grad():
        torch.testing.assert_close(pass_and_merge(x, weight, kind)[1], found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [True, False])
def test_gradients(kind, weighted):
    x, weight = picture(6, 2, 3, 2, dtype=torch.float64), weights(6, 1, 3, 2) if weighted else None
    assert torch.autograd.gradcheck(lambda x: pass_and_merge(x, weight, kind), x)


def test_views_that_all_count_alike_give_their_mean():
    x = picture(6, 4, 3, 3, dtype=torch.float64)
    _, found = pass_and_merge(x, torch.ones(6, 1, 3, 3, dtype=torch.float64), "mean")
    torch.testing.assert_close(found, mean_over_views(x))
    _, plain = pass_and_merge(x, None, "max_mean_var")
    expected = x.unflatten(0, (2, 3))
    parts = [expected.mean(1), expected.amax(1), expected.var(1, correction=0)]
    torch.testing.assert_close(plain, torch.cat(parts, dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_view_counts_in_none(kind):
    """Whatever its features are."""
    x, weight = picture(3, 4, 3, 3).detach(), torch.ones(3, 1, 3, 3)
    weight[1] = 0
    _, before = pass_and_merge(x, weight, kind)
    x[1] = 1e4
    _, after = pass_and_merge(x, weight, kind)
    assert torch.equal(before, after)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near_and_keeps_its_dtype(kind):
    x, weight = picture(3, 8, 4, 4).detach(), weights(3, 1, 4, 4).float()
    _, wide = pass_and_merge(x, weight, kind)
    _, short = pass_and_merge(x.bfloat16(), weight, kind)
    assert short.dtype == torch.bfloat16
    torch.testing.assert_close(short.float(), wide, atol=0.05, rtol=0.05)


def test_nothing_is_kept_beside_the_features():
    """A skip at full resolution is half a gigabyte at 2048 px: what backward needs is worked out again."""
    x, weight, kept = picture(3, 16, 8, 8), torch.ones(3, 1, 8, 8), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        pass_and_merge(x, weight, "max_mean_var")
    assert sum(kept) == x.numel() + weight.numel()
