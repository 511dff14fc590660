"""Convolution of a strip of a picture's rows: the neighbours' rows travel while it works.

The strip is convolved as if nothing were beyond it; then the few output rows that see a neighbour's are worked out anew.
A strip with its neighbours' rows around it would be a copy of everything (measured at 2048 px on two H200, with upsampling's
and pooling's: 24 ms of a step).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuropbr_dist.kernels.dispatch import channels_last
from neuropbr_dist.kernels.fused_conv import Pair, act_gradient, bias_act_conv, conv_gradients
from neuropbr_dist.strip import Strip


@dataclass(frozen=True)
class Reach:
    """Rows that a convolution's taps see beyond a strip of `rows`, and its output rows that do."""

    taps: int
    stride: int
    padding: int
    rows: int

    @property
    def above(self) -> int:
        """Rows of the strip above that are seen."""
        return self.padding

    @property
    def below(self) -> int:
        """Rows of the strip below that are seen."""
        return self.taps - self.stride - self.padding

    def seeing(self, rows: int) -> int:
        """Return how many output rows see some of so many rows beyond an edge."""
        return -(-rows // self.stride)

    def own(self, rows: int) -> int:
        """Return how many of the strip's rows those output rows see as well."""
        return (self.seeing(rows) - 1) * self.stride + self.taps - rows

    @property
    def fits(self) -> bool:
        """Whether each output row sees one neighbour at most, and the strip alone has as many rows as with them."""
        return (
            self.rows % self.stride == 0
            and self.below <= self.above
            and max(self.own(self.above), self.own(self.below)) <= self.rows
        )


@dataclass(frozen=True)
class Border:
    """Output rows that see `halo` (N, C, rows, W), rows of one neighbour."""

    halo: Tensor
    at_top: bool
    out: slice
    own: slice
    """Rows of the strip that they see as well."""

    def window(self, own: Tensor) -> Tensor:
        """Return what they see, where `own` are the strip's rows."""
        return channels_last(torch.cat([self.halo, own] if self.at_top else [own, self.halo], 2))

    def halo_window(self) -> Tensor:
        """Return what they see of the neighbour alone, the strip's rows being zeros."""
        own = self.own.stop - self.own.start
        return channels_last(F.pad(self.halo, (0, 0, 0, own) if self.at_top else (0, 0, own, 0)))

    def of_halo(self, window: Tensor) -> Tensor:
        """Return the neighbour's rows of a window."""
        rows = self.halo.shape[2]
        return window[:, :, :rows] if self.at_top else window[:, :, -rows:]


def borders(reach: Reach, above: Tensor | None, below: Tensor | None) -> list[Border]:
    """Return the borders that there are: none where a picture ends, or where nothing beyond is seen."""
    found, rows_out = [], reach.rows // reach.stride
    if above is not None and reach.above:
        out, own = slice(0, reach.seeing(reach.above)), slice(0, reach.own(reach.above))
        found.append(Border(above, True, out, own))
    if below is not None and reach.below:
        out = slice(rows_out - reach.seeing(reach.below), rows_out)
        found.append(Border(below, False, out, slice(reach.rows - reach.own(reach.below), reach.rows)))
    return found


class StripConv(torch.autograd.Function):
    """`activation(conv(x) + bias + residual)` of a strip, where its reach `fits`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        stride: Pair,
        padding: Pair,
        slope: float | None,
        strip: Strip,
    ) -> Tensor:
        reach = Reach(weight.shape[2], stride[0], padding[0], x.shape[2])
        first, last = x[:, :, : reach.below], x[:, :, reach.rows - reach.above :]
        coming = strip.exchange(first, last, reach.above, reach.below)
        y = bias_act_conv(x, weight, bias, residual, stride, padding, slope)
        above, below = coming.wait()
        for border in borders(reach, above, below):
            beside = None if residual is None else residual[:, :, border.out]
            window = border.window(x[:, :, border.own])
            y[:, :, border.out] = bias_act_conv(window, weight, bias, beside, stride, (0, padding[1]), slope)
        ctx.save_for_backward(x, weight, y if slope is not None else None, above, below)
        ctx.how = reach, stride, padding, slope, strip
        ctx.has_bias, ctx.has_residual = bias is not None, residual is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, y, above, below = ctx.saved_tensors
        reach, stride, padding, slope, strip = ctx.how
        dz, dbias = channels_last(dy), None
        if slope is not None:
            dz, dbias = act_gradient(dz, y, slope)
        elif ctx.has_bias:
            dbias = dz.sum((0, 2, 3), dtype=torch.promote_types(dz.dtype, torch.float32))
        wanted = ctx.needs_input_grad[:2]
        # Where there is no neighbour, of these nothing is sent.
        upwards, downwards = x[:, :, : reach.above], x[:, :, : reach.below]
        parts: list[Tensor] = []
        for border in borders(reach, above, below):
            window = border.halo_window()
            dout = channels_last(dz[:, :, border.out])
            dwindow, part = conv_gradients(dout, window, weight, stride, (0, padding[1]), wanted)
            if part is not None:
                parts.append(part)
            if dwindow is not None and border.at_top:
                upwards = border.of_halo(dwindow)
            elif dwindow is not None:
                downwards = border.of_halo(dwindow)
        # The strip above has the gradient of this one's first rows, that below of its last.
        coming = strip.exchange(upwards, downwards, reach.below, reach.above) if wanted[0] else None
        dx, dweight = conv_gradients(dz, x, weight, stride, padding, wanted)
        if dweight is not None:
            dweight = sum(parts, dweight)
        if coming is not None and dx is not None:
            first, last = coming.wait()
            if first is not None:
                dx[:, :, : reach.below] += first
            if last is not None:
                dx[:, :, reach.rows - reach.above :] += last
        return (
            dx, dweight, dbias if ctx.has_bias else None, dz if ctx.has_residual else None,
            None, None, None, None,
        )  # fmt: skip
