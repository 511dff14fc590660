"""Activation checkpointing: what is computed again, and that nothing else changes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from neuropbr_dist.models.norm import StepBatchNorm2d, commit_statistics
from neuropbr_dist.parallel.activation import checkpoint_segment
from neuropbr_dist.training.step import gan_step
from tests.support.parity import Case, Row, config, networks, objective, rank_batch

CASE = Case(steps=1)
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
CONVOLUTION = torch.ops.aten.convolution.default


class CountOps(TorchDispatchMode):
    """Counts calls of each operator, backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def calls_in_a_step(recompute: str) -> Counter[Any]:
    """Operator calls of a generator's step."""
    row = Row(engine="single", world=1, recompute=recompute)
    g, _ = networks(CASE, row)
    with CountOps() as ops:
        gan_step(g, None, rank_batch(CASE, row, 0), objective(CASE))
    return ops.calls


def test_selective_keeps_attention_outputs():
    depth = config(CASE).model.transformer_depth
    counts = {recompute: calls_in_a_step(recompute) for recompute in ("none", "selective", "full")}
    assert counts["none"][ATTENTION] == depth
    assert counts["selective"][ATTENTION] == depth
    assert counts["full"][ATTENTION] == 2 * depth
    # What lies outside the segments (the heads) is never computed again.
    assert counts["none"][CONVOLUTION] < counts["selective"][CONVOLUTION] == counts["full"][CONVOLUTION]


def test_dropout_is_the_same_when_computed_again():
    def gradients(recompute: bool) -> list[Tensor]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        if recompute:
            checkpoint_segment(module, "full")
        module(torch.ones(4, 8)).sum().backward()
        return [p.grad for p in module.parameters()]

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, again)


def test_parameter_names_stay():
    module = nn.Sequential(nn.Linear(8, 8))
    checkpoint_segment(module, "selective")
    assert [name for name, _ in module.named_parameters()] == ["0.weight", "0.bias"]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_pass_that_is_computed_again_is_noted_once(recompute):
    norm = StepBatchNorm2d(2)
    module = nn.Sequential(norm)
    if recompute:
        checkpoint_segment(module, "full")
    inputs = [torch.randn(1, 2, 4, 4) + shift for shift in (1.0, 5.0)]
    module(inputs[0]).sum().backward()
    module(inputs[1])
    commit_statistics(module)
    expected = norm.momentum * torch.cat(inputs).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected)
