"""Every engine trains the GAN to the same parameters, moments and losses as a plain loop."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest

from neuropbr_dist.parallel import Network
from tests.support import parity
from tests.support.code_generation import no_code_generation
from tests.support.parity import ENGINES, Case, Row, differences, train_row, update_error
from tests.support.parity_rows import TITLE, check, label, reference, trained

BASIC = Case()
WIDE = Case(batch=8)  # two samples a rank at world 4
TWO_D_STEPS = Case(d_steps=2)
FROZEN = Case(frozen_encoder=True)
FROZEN_RESNET = Case(frozen_encoder=True, resnet=True, depth=1, w_gan=0.1)
# Seed 5: with 3 the gradients of the discriminator's last bias, one number, all but cancel.
PLANE = Case(plane=True, seed=5)
JUDGED = Case(plane=True, judges_views=True, seed=5)
MATCHED = Case(w_features=1.0)
RELIT = Case(w_render=1.0)
FROZEN_PLANE = Case(plane=True, seed=5, frozen_encoder=True)
RENDERED = Case(plane=True, rendered=True, seed=9, steps=3, w_render=0.3)
TINY = Case(depth=1, d_layers=1)  # for the compiler: 0.2 s a graph, with Inductor 3 s
REAL = Case(steps=30, smooth=False, double=True)
MATCHED_REAL = Case(smooth=False, double=True, w_features=1.0)

CUTS = [
    {"accumulation": accumulation, "recompute": recompute}
    for accumulation, recompute in product((1, 2), ("none", "full"))
]


CORNERS = [CUTS[0], CUTS[-1]]
HOOKED = ("fsdp", "zero2", "zero3")
"""Engines that act while gradients are made: what recomputation does to one micro-batch needn't be what it does to two."""


def on(names: str, case: Case = BASIC, **changes: Any) -> list[tuple[Case, Row]]:
    return [(case, replace(ENGINES[name], **changes)) for name in names.split()]


def on_four(cuts: list[dict[str, Any]]) -> list[tuple[Case, Row]]:
    return [
        pair
        for shard in ("world", "node")
        for cut in cuts
        for pair in on("fsdp", WIDE, world=4, shard=shard, **cut)
    ]


def rows() -> list[tuple[Case, Row]]:
    """By world size, so that each pool of processes is used up before the next."""
    found = [
        pair for name in ENGINES for cut in (CUTS if name in HOOKED else CORNERS) for pair in on(name, **cut)
    ]
    found += on("single fsdp zero3", recompute="selective")
    found += on("fsdp zero2 zero3", offload=True)
    found += on("zero3", persist=10_000)
    found += on("fsdp zero3", engine_d="ddp")
    found += on("fsdp zero2", FROZEN) + on("zero3", FROZEN, persist=1_000)
    found += on("single ddp fsdp zero1 zero2 zero3", PLANE, recompute="full") + on("fsdp", PLANE, world=3)
    found += on("fsdp zero3", FROZEN_PLANE)
    found += on("single", RENDERED, accumulation=2) + on("ddp fsdp zero2 zero3", RENDERED)
    found += on("ddp fsdp zero2 zero3", JUDGED, accumulation=2, recompute="full")
    found += on("ddp fsdp zero2 zero3", MATCHED, accumulation=2, recompute="full")
    found += on("zero2 zero3", MATCHED)
    found += on("fsdp zero2", RELIT, world=3)
    found += on("ddp", MATCHED, at_once=True) + on("ddp", at_once=True, world=3)
    found += on("single ddp fsdp zero0 zero2 zero3", TWO_D_STEPS)
    found += on("ddp fsdp zero0 zero2 zero3", world=3)
    found += on_four(CORNERS)
    return sorted(found, key=lambda pair: pair[1].world)


def long_rows() -> list[tuple[Case, Row]]:
    """Rows of many seconds: code generation, a real ResNet, the cuts that fewer ranks or other engines show as well."""
    # Accumulation makes one rank's micro-batches those of two ranks: Inductor's cache serves the others.
    found = on("single", TINY, compile=True, accumulation=2)
    found += on("ddp fsdp zero2 zero3", TINY, compile=True)
    found += on("fsdp zero2", FROZEN_RESNET) + on("zero3", FROZEN_RESNET, persist=10_000)
    found += [
        pair for name in ENGINES if name not in HOOKED for cut in CUTS[1:-1] for pair in on(name, **cut)
    ]
    return found + on_four(CUTS[1:-1])


@pytest.mark.multiprocess
@pytest.mark.parametrize("pair", rows(), ids=label)
def test_matches_the_plain_loop(pair, summary):
    check(summary, pair, 1e-5)


@pytest.mark.drill
@pytest.mark.multiprocess
@pytest.mark.parametrize("pair", long_rows(), ids=label)
def test_matches_the_plain_loop_in_long_rows(pair, summary):
    check(summary, pair, 1e-5)


def train_captured(case: Case, row: Row) -> dict[str, Any]:
    """Compiled as far as an engine can interfere: captured, guarded and differentiated, without code generation."""
    with no_code_generation():
        return train_row(case, row)


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["fsdp", "zero3"])
def test_captured_graphs_match_the_plain_loop(name, summary):
    """On a group of one, whose hooks are those of many, and which captures once."""
    row = replace(ENGINES[name], world=1, compile=True)
    check(summary, (TINY, row), 1e-5, f"{__name__}:train_captured")


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["single", "ddp", "fsdp"])
def test_real_losses_in_float64(name, summary):
    check(summary, (REAL, ENGINES[name]), 1e-12)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "pair",
    on("single ddp fsdp", MATCHED_REAL) + on("ddp fsdp", MATCHED_REAL, accumulation=2, recompute="full"),
    ids=label,
)
def test_features_matched_in_float64(pair, summary):
    check(summary, pair, 1e-12)


@cache
def single_in_bf16() -> dict[str, Any]:
    return train_row(BASIC, replace(ENGINES["single"], bf16=True))


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_bf16_is_off_by_its_own_noise(name, accumulation, summary):
    """Judged by the whole update: single elements near zero are noise. The yardstick is bf16 against float32."""
    row = replace(ENGINES[name], accumulation=accumulation, bf16=True)
    bound = 2 * update_error(single_in_bf16()["state"], reference(BASIC)["state"], BASIC)
    found = update_error(trained(BASIC, row)["state"], single_in_bf16()["state"], BASIC)
    mark = "ok" if found <= bound else "OUT"
    line = f"{found:9.1e}  (bound {bound:.0e})  {mark:3}  {label((BASIC, row))}, the update against single's"
    summary.setdefault(TITLE, []).append(line)
    assert found <= bound < 0.05


@pytest.mark.parametrize(
    "case",
    [BASIC, WIDE, TWO_D_STEPS, FROZEN, FROZEN_RESNET, PLANE, MATCHED, FROZEN_PLANE, RENDERED, TINY, REAL],
    ids=str,
)
def test_clipping_is_active_in_the_reference(case):
    for part in ("G_norm", "D_norm"):
        assert any(record[part] > case.clip for record in reference(case)["records"]), part


# -- the check bites -----------------------------------------------------------------------


def d_not_frozen(case: Case, row: Row) -> dict[str, Any]:
    """Wrong on purpose: the generator's loss leaves gradients in the discriminator."""
    original = Network.frozen

    def frozen(self: Network) -> AbstractContextManager[None]:
        self._frozen = False
        return nullcontext()

    Network.frozen = frozen
    try:
        return train_row(case, row)
    finally:
        Network.frozen = original


def not_scaled_by_world(case: Case, row: Row) -> dict[str, Any]:
    """Wrong on purpose: gradients are means over ranks, not sums."""
    original = parity.networks

    def networks(case: Case, row: Row) -> tuple[Network, Network]:
        built = original(case, row)
        for network in built:
            network.world = 1  # type: ignore[attr-defined]
        return built

    parity.networks = networks
    try:
        return train_row(case, row)
    finally:
        parity.networks = original


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["single", "ddp", "fsdp"])
def test_notices_a_discriminator_that_is_not_frozen(name):
    wrong = differences(trained(BASIC, ENGINES[name], f"{__name__}:d_not_frozen"), reference(BASIC))
    assert max(wrong.values()) > 1e-2


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero0", "zero2", "zero3"])
def test_notices_gradients_that_are_not_scaled_by_the_world(name):
    wrong = differences(trained(BASIC, ENGINES[name], f"{__name__}:not_scaled_by_world"), reference(BASIC))
    assert max(wrong.values()) > 1e-2
