"""Convolution, norm and activation as one: the form in which the kernels take them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropbr_dist import kernels
from neuropbr_dist.kernels.norm_act import activate
from neuropbr_dist.models.norm import FrozenBatchNorm2d, FusedGroupNorm, NormFactory
from neuropbr_dist.strip import Strip


class FusedConv2d(nn.Conv2d):
    """`nn.Conv2d` that can take what follows it along: a scale, a shift, a residual, an activation."""

    strip: Strip | None = None
    """Way to the other strips where the input is a strip of a picture's rows; None: it is whole."""

    @classmethod
    def of(cls, conv: nn.Conv2d) -> FusedConv2d:
        """Return the same convolution with the same parameters."""
        with torch.device("meta"):
            own = cls(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,  # type: ignore[arg-type]
                conv.stride,  # type: ignore[arg-type]
                conv.padding,  # type: ignore[arg-type]
                bias=conv.bias is not None,
            )
        own.weight, own.bias = conv.weight, conv.bias
        return own

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        slope: float | None = None,
    ) -> Tensor:
        """Return `activation(conv(x) * scale + shift + residual)`, (N, C, H, W) -> (N, O, H', W').

        Args:
            scale, shift: (O,) float32; the scale goes into the weights.
            slope: of the activation below zero: 0 is ReLU; None is no activation.
        """
        weight = self.whole_weight()
        bias = self.bias if shift is None else shift
        strip = self.strip if exchanges_rows(self, x) else None
        padding: Any = self.padding
        if strip is None:
            x, padding = with_rows_in_reach(self, self.strip, x)
        if strip is not None or kernels.usable(x):
            return kernels.conv(
                x, weight, bias, residual, scale=scale,
                stride=self.stride, padding=padding, slope=slope, strip=strip,  # type: ignore[arg-type]
            )  # fmt: skip
        dtype = self.weight.dtype
        if scale is not None:
            weight = weight * scale.view(-1, 1, 1, 1)
        bias = None if bias is None else bias.to(dtype)
        out = F.conv2d(x, weight.to(dtype), bias, self.stride, padding)  # type: ignore[arg-type]
        return activate(out, slope, residual)

    def whole_weight(self) -> Tensor:
        """Return the weight (O, C, kh, kw) of all input channels."""
        return self.weight


def exchanges_rows(conv: nn.Conv2d, x: Tensor) -> bool:
    """Return whether a convolution of a strip (N, C, h, W) takes the neighbours' rows as they come, beside its own.

    Not in a compiled region, nor where strips are short or grow: then `with_rows_in_reach` puts them together first.
    """
    if getattr(conv, "strip", None) is None or conv.kernel_size[0] == 1 or torch.compiler.is_compiling():
        return False
    return reach_of(conv, x).fits


def reach_of(conv: nn.Conv2d, x: Tensor) -> kernels.Reach:
    """Return how far a convolution's taps reach beyond a strip (N, C, h, W)."""
    return kernels.Reach(conv.kernel_size[0], conv.stride[0], int(conv.padding[0]), x.shape[2])


def with_rows_in_reach(conv: nn.Conv2d, strip: Strip | None, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return a convolution's input with what its taps reach of neighbouring strips, and the padding that is left to do.

    Args:
        x: (N, C, h, W), where `strip` is one; h a multiple of the stride unless it is the last.
    """
    padding: tuple[int, int] = conv.padding  # type: ignore[assignment]
    if strip is None or conv.kernel_size[0] == 1:
        return x, padding
    reach = reach_of(conv, x)
    x = strip.with_halo(x, reach.above, reach.below)
    if strip.last and reach.below > reach.above:  # the picture is padded alike on either side
        x = x[:, :, : reach.above - reach.below]
    return x, (0, padding[1])


class WidenedConv2d(FusedConv2d):
    """A convolution that was given more input channels, after its own, which start without effect.

    `weight` is of its own channels and stays what it was loaded as; `extra` (O, E, kh, kw) is of those that came.
    """

    extra: nn.Parameter

    @classmethod
    def of(cls, conv: nn.Conv2d, extra: int = 0) -> WidenedConv2d:
        """Return the same convolution with the same parameters, and `extra` channels more."""
        own = super().of(conv)
        assert isinstance(own, WidenedConv2d)
        own.extra = nn.Parameter(conv.weight.new_zeros(conv.out_channels, extra, *conv.kernel_size))
        return own

    def whole_weight(self) -> Tensor:
        return torch.cat([self.weight, self.extra], dim=1)


class SpectralConv2d(FusedConv2d):
    """A convolution by its weight over the largest singular value of it as a matrix (O, C kh kw) (Miyato et al. 2018).

    The value is looked for anew in each pass and from the same start. So the weight is all that is kept, under the name that any
    convolution's has, and all ranks and recomputation find the same.
    """

    def whole_weight(self) -> Tensor:
        return (self.weight / largest_singular_value(self.weight.flatten(1))).to(self.weight.dtype)


def largest_singular_value(matrix: Tensor, iterations: int = 8) -> Tensor:
    """Return () the largest singular value of (O, I), from below, in float32 at least.

    Its gradient is that of the last product: the singular vectors count as constants, as they do at the maximum.
    """
    kind = matrix.device.type
    # Asked of devices that have none, `meta` among them, autocast raises.
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        with torch.no_grad():
            left = matrix.new_ones(len(matrix))
            for _ in range(iterations):
                right = F.normalize(left @ matrix, dim=0)
                left = F.normalize(matrix @ right, dim=0)
        return left @ (matrix @ right)


def input_conv(conv: nn.Conv2d, channels: int) -> FusedConv2d:
    """Return the first convolution of a network whose input has `channels`, from one of fewer."""
    extra = channels - conv.in_channels
    return WidenedConv2d.of(conv, extra) if extra else FusedConv2d.of(conv)


class JoinConv2d(nn.Conv2d):
    """Convolution of two inputs' concatenated channels, without the concatenation.

    The weight gradient of the whole was slow (measured: 4.7 ms at 384 channels where its two parts
    take 1.3), and so were the gradients' strided slices (17 ms of a step).
    """

    strip: Strip | None = None
    """Way to the other strips where the inputs are strips of a picture's rows, as a `FusedConv2d`'s."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:  # type: ignore[override]
        """(N, C1, H, W), (N, C2, H, W) with C1 + C2 = `in_channels` -> (N, O, H, W)"""
        if kernels.usable(first):
            first, second = kernels.channels_last(first), kernels.channels_last(second)
        of_first, of_second = self.weight.split([first.shape[1], second.shape[1]], dim=1)
        if exchanges_rows(self, first):
            where: Any = {"stride": self.stride, "padding": self.padding, "strip": self.strip}
            of_first_input = kernels.conv(first, of_first, **where)
            return of_first_input + kernels.conv(second, of_second, self.bias, **where)
        first, padding = with_rows_in_reach(self, self.strip, first)
        second, _ = with_rows_in_reach(self, self.strip, second)
        out = F.conv2d(first, of_first, None, self.stride, padding)  # type: ignore[arg-type]
        return out + F.conv2d(second, of_second, self.bias, self.stride, padding)  # type: ignore[arg-type]


def slope_of(act: nn.Module | None) -> float | None:
    """Return the slope of a (leaky) ReLU below zero; None for what isn't one."""
    if isinstance(act, nn.LeakyReLU):
        return act.negative_slope
    return 0.0 if isinstance(act, nn.ReLU) else None


def conv_norm_act(
    conv: Callable[[Tensor], Tensor],
    norm: nn.Module,
    act: nn.Module | None,
    x: Tensor,
    residual: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Return `act(norm(conv(x)) + residual + shift)`; a frozen batch norm goes into the convolution.

    Args:
        shift: (O,) float32, after a frozen batch norm only: what the residual's own one left out.
    """
    slope = slope_of(act)
    if isinstance(norm, FrozenBatchNorm2d) and isinstance(conv, FusedConv2d):
        scale, own = norm(None)
        out = conv(x, scale, own if shift is None else own + shift, residual, slope)
    else:
        out = norm(conv(x), slope, residual)
    return out if act is None or slope is not None else act(out)


def conv_layers(in_channels: int, out_channels: int, norm: NormFactory) -> list[nn.Module]:
    """Return a 3x3 convolution, a norm and a ReLU, for a `ConvChain`."""
    conv = FusedConv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [conv, norm(out_channels), nn.ReLU(inplace=True)]


class Kernels(nn.Module):
    """Segment or compile unit that has kernels of its own, where compiling it gains nothing."""

    def runs_kernels(self, x: Tensor, *_more: Tensor) -> bool:
        """Return whether a forward pass of `x` does without the compiler."""
        return kernels.usable(x) and self._has_kernels

    @cached_property
    def _has_kernels(self) -> bool:
        norms = [m for m in self.modules() if isinstance(m, nn.GroupNorm | nn.BatchNorm2d)]
        return all(isinstance(m, FusedGroupNorm | FrozenBatchNorm2d) for m in norms)


class ConvChain(nn.Sequential, Kernels):
    """Convolution, norm, activation, once or more; in between whatever a `Sequential` takes."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W')"""
        return run_layers(list(self), x)


def run_layers(layers: list[nn.Module], x: Tensor) -> Tensor:
    """Run layers one after the other, convolution, norm and activation as one."""
    while layers:
        if len(layers) > 2 and isinstance(layers[1], nn.GroupNorm | nn.BatchNorm2d):
            conv, norm, act, *layers = layers
            x = conv_norm_act(conv, norm, act, x)
        elif isinstance(layers[0], FusedConv2d) and len(layers) > 1 and slope_of(layers[1]) is not None:
            conv, act, *layers = layers
            x = conv(x, slope=slope_of(act))
        else:
            layer, *layers = layers
            x = layer(x)
    return x
