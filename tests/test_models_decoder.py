"""The decoder's own operations against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from neuropbr_dist.kernels import mean_over_views, upsample_2x


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 9)])
def test_upsampling_is_bilinear_interpolation(size):
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    wanted = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample_2x(x), wanted, rtol=0, atol=1e-14)
    weight = torch.randn_like(wanted)
    (found,) = torch.autograd.grad((upsample_2x(x) * weight).sum(), x)
    (reference,) = torch.autograd.grad((wanted * weight).sum(), x)
    torch.testing.assert_close(found, reference, rtol=0, atol=1e-13)


@pytest.mark.parametrize("samples", [1, 2])
def test_mean_over_views(samples):
    x = torch.randn(3 * samples, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(mean_over_views(x), x.unflatten(0, (samples, 3)).mean(1))
    assert torch.autograd.gradcheck(mean_over_views, x)
