"""ClippedAdamW: clipping, skipping and fp16's loss scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuropbr_dist.parallel import Adam
from neuropbr_dist.parallel import optimizer as module
from neuropbr_dist.parallel.optimizer import ClippedAdamW

ADAM = Adam(lr=0.1, betas=(0.9, 0.99), weight_decay=0.01, eps=1e-8)


def params() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, 2, generator=generator) for name in ("a", "b")}


def grads(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, generator=generator) for _ in range(2)]


def torch_adamw(clip: float | None, steps: int) -> dict[str, Tensor]:
    """The same with torch's own optimizer and clipping."""
    expected = params()
    opt = torch.optim.AdamW(
        expected.values(), lr=ADAM.lr, betas=ADAM.betas, eps=ADAM.eps, weight_decay=ADAM.weight_decay
    )
    for step in range(steps):
        for p, g in zip(expected.values(), grads(step), strict=True):
            p.grad = g
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(expected.values()), clip)
        opt.step()
    return expected


def values(optimizer: ClippedAdamW) -> dict[str, Tensor]:
    """Parameters, moments and step counts, copied."""
    found = {name: p.clone() for name, p in optimizer.params.items()}
    for name, p in optimizer.params.items():
        found |= {f"{key}/{name}": value.clone() for key, value in optimizer.adamw.state[p].items()}
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("clip", [None, 0.5, 100.0])
def test_matches_torch(clip):
    optimizer = ClippedAdamW(params(), ADAM, clip)
    for step in range(3):
        result = optimizer.step(grads(step))
        norm = torch.cat([g.flatten() for g in grads(step)]).norm()
        torch.testing.assert_close(result.grad_norm, norm)
        assert result.finite
    for name, expected in torch_adamw(clip, 3).items():
        torch.testing.assert_close(optimizer.params[name], expected)
    assert optimizer.counters() == {"step": 3.0}


GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_norm_is_the_same_however_gradients_are_cut_and_wherever_they_lie(device):
    generator = torch.Generator().manual_seed(0)
    for length in range(90_000, 90_020):
        whole = torch.randn(length, generator=generator).to(device)
        optimizer = ClippedAdamW({"a": torch.zeros(length, device=device)}, ADAM, 1.0)
        norm = optimizer.grad_norm([whole])
        assert norm.dtype == torch.float32
        moved = torch.cat([whole[:1], whole])[1:]  # four bytes further
        for cut in ([moved], list(whole.split(7_001)), list(moved.flip(0).split([1, 5, length - 6]))):
            assert torch.equal(optimizer.grad_norm(cut), norm)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_gradient_changes_nothing(value):
    optimizer = ClippedAdamW(params(), ADAM, 1.0)
    optimizer.step(grads(0))
    before = values(optimizer)
    bad = grads(1)
    bad[1][2, 1] = value
    assert not optimizer.step(bad).finite
    assert_same(values(optimizer), before)
    assert optimizer.step(grads(1)).finite
    for name, expected in torch_adamw(1.0, 2).items():
        torch.testing.assert_close(optimizer.params[name], expected)


def test_an_absent_gradient_leaves_its_parameter_alone():
    optimizer = ClippedAdamW(params(), ADAM, 1.0)
    optimizer.step([grads(0)[0], None])
    assert not torch.equal(optimizer.params["a"], params()["a"])
    assert torch.equal(optimizer.params["b"], params()["b"])


# -- fp16 ------------------------------------------------------------------------------------


def scaled(optimizer: ClippedAdamW, step: int) -> list[Tensor]:
    return [g * optimizer.scale for g in grads(step)]


def overflown() -> list[Tensor]:
    return [g * float("inf") for g in grads(0)]


def test_loss_scale_leaves_the_update_alone():
    plain, half = ClippedAdamW(params(), ADAM, 0.5), ClippedAdamW(params(), ADAM, 0.5, fp16=True)
    for step in range(3):
        expected, result = plain.step(grads(step)), half.step(scaled(half, step))
        torch.testing.assert_close(result.grad_norm, expected.grad_norm)
    for name, p in plain.params.items():
        torch.testing.assert_close(half.params[name], p)


def test_an_overflow_halves_the_scale_and_is_no_fault():
    optimizer = ClippedAdamW(params(), ADAM, 1.0, fp16=True)
    before, scale = values(optimizer), float(optimizer.scale)
    assert scale == module.INITIAL_SCALE
    assert optimizer.step(overflown()).finite
    assert float(optimizer.scale) == scale / 2
    assert_same(values(optimizer), before)


def test_an_overflow_at_the_smallest_scale_is_a_fault():
    optimizer = ClippedAdamW(params(), ADAM, 1.0, fp16=True)
    before, flags = values(optimizer), []
    while float(optimizer.scale) > module.SMALLEST_SCALE:
        flags.append(bool(optimizer.step(overflown()).finite))
    assert flags == [True] * 16  # from 2 ** 16 to 1
    assert not optimizer.step(overflown()).finite
    assert float(optimizer.scale) == module.SMALLEST_SCALE
    assert_same(values(optimizer), before)


def test_the_scale_doubles_after_enough_good_steps(monkeypatch):
    monkeypatch.setattr(module, "GROWTH_INTERVAL", 3)
    optimizer = ClippedAdamW(params(), ADAM, 1.0, fp16=True)
    scales = []
    for step in range(2):
        optimizer.step(scaled(optimizer, step))
    optimizer.step(overflown())  # starts the count anew
    for step in range(3):
        optimizer.step(scaled(optimizer, step))
        scales.append(float(optimizer.scale) / module.INITIAL_SCALE)
    assert scales == [0.5, 0.5, 1.0]


def test_counters_survive_a_save():
    optimizer = ClippedAdamW(params(), ADAM, 1.0, fp16=True)
    optimizer.step(overflown())
    for step in range(2):
        optimizer.step(scaled(optimizer, step))
    counters: dict[str, Any] = optimizer.counters()
    assert counters == {"step": 2.0, "loss_scale": module.INITIAL_SCALE / 2, "growth": 2.0}
    other = ClippedAdamW(params(), ADAM, 1.0, fp16=True)
    other.load_counters(counters)
    assert other.counters() == counters
