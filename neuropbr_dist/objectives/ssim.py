"""Structural similarity (Wang et al. 2004) with an 11x11 Gaussian window, sigma 1.5.

Border: only windows that lie wholly inside the picture count ("valid", as in the
paper and in scikit-image with `gaussian_weights=True, use_sample_covariance=False`);
nothing is padded. The upstream trainer pads with zeros, which puts a dark frame
around both pictures; torchmetrics reflects.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from neuropbr_dist.errors import UserError
from neuropbr_dist.strip import Strip

WINDOW = 11
SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2  # for a data range of 1
_PIXELS_AT_ONCE = 2**22  # one 2048x2048 channel: about 0.4 GiB of intermediates in backward


def ssim_of_planes(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean SSIM of planes `(N, H, W)` -> `(N,)`.

    Blurs the moments of x + y and x - y: four pictures in place of five, and equal
    inputs give exactly 1.
    """
    total, difference = x + y, x - y
    moments = torch.stack([total, difference, total.square(), difference.square()], dim=1)
    mean_t, mean_d, square_t, square_d = _blur(moments).unbind(1)
    mean_t, mean_d = mean_t.square(), mean_d.square()
    var_t, var_d = square_t - mean_t, square_d - mean_d
    # mean_t - mean_d = 4 E[x]E[y],  mean_t + mean_d = 2 (E[x]^2 + E[y]^2),  and so for the variances.
    luminance = (mean_t - mean_d + 2 * _C1) / (mean_t + mean_d + 2 * _C1)
    structure = (var_t - var_d + 2 * _C2) / (var_t + var_d + 2 * _C2)
    return (luminance * structure).mean((1, 2))


def _blur(planes: Tensor) -> Tensor:
    """Return the Gaussian blur of `(N, C, H, W)` without padding, rows then columns."""
    at = torch.arange(WINDOW, device=planes.device, dtype=planes.dtype) - WINDOW // 2
    taps = torch.exp(-0.5 * (at / SIGMA).square())
    taps = taps / taps.sum()
    if torch.compiler.is_compiling():  # the sum of shifted pictures: one kernel with all that comes before it
        for dim in (3, 2):
            length = planes.shape[dim] - WINDOW + 1
            planes = sum(taps[i] * planes.narrow(dim, i, length) for i in range(WINDOW))  # type: ignore[assignment]
        return planes
    # Depthwise: on CUDA that keeps it out of cuDNN, whose TF32 would drown the variances.
    channels = planes.shape[1]
    taps = taps.repeat(channels, 1, 1, 1)
    rows = F.conv2d(planes, taps, groups=channels)
    return F.conv2d(rows, taps.transpose(2, 3).contiguous(), groups=channels)


def ssim(
    pred: Tensor,
    target: Tensor,
    of_planes: Callable[[Tensor, Tensor], Tensor] = ssim_of_planes,
    strip: Strip | None = None,
) -> Tensor:
    """Return SSIM per sample and channel: `(B, C, H, W)` in [0, 1] -> `(B, C)`, 1 where equal.

    Differentiable. Channels are taken a few at a time and recomputed in backward, so
    that beyond the inputs nothing of picture size is kept for it.

    Args:
        of_planes: `ssim_of_planes`, compiled or not.
        strip: where the pictures are a strip of rows of larger ones: its part of their mean. None: they are whole.

    Raises:
        UserError: the picture is smaller than the window.
    """
    batch, channels, height, width = pred.shape
    whole = height if strip is None else height * strip.count
    if min(whole, width) < WINDOW:
        raise UserError(
            f"SSIM needs pictures of at least {WINDOW}x{WINDOW} pixels, got {width}x{whole}: "
            "raise data.image_size"
        )
    if strip is not None:
        share = windows_share(strip, height)
        pred, target = (with_window_rows(strip, picture) for picture in (pred, target))
        height = pred.shape[2]
    at_once = max(1, _PIXELS_AT_ONCE // (height * width))
    planes = zip(_planes(pred).split(at_once), _planes(target).split(at_once), strict=True)
    # Autocast would run the convolutions in half precision.
    with torch.autocast(pred.device.type, enabled=False):
        values = [
            checkpoint(of_planes, x, y, use_reentrant=False, preserve_rng_state=False) for x, y in planes
        ]
    found = torch.cat(values).view(batch, channels)
    return found if strip is None else share * found


def windows_share(strip: Strip, height: int) -> float:
    """Return the share of a picture's windows whose middle lies in this strip of `height` rows."""
    edge = WINDOW // 2
    return (height - edge * (strip.first + strip.last)) / (height * strip.count - 2 * edge)


def with_window_rows(strip: Strip, pictures: Tensor) -> Tensor:
    """Return a strip with its neighbours' rows, as far as the windows around its own rows reach."""
    reach = WINDOW // 2
    wide = strip.with_halo(pictures, reach, reach)
    return wide[:, :, reach * strip.first : wide.shape[2] - reach * strip.last]


def _planes(pictures: Tensor) -> Tensor:
    return pictures.flatten(0, 1).contiguous()
