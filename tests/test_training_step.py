"""The GAN step on one device: what it reports, and that how a batch is cut doesn't matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.data.order import Slot
from neuropbr_dist.models import features_of, logits_of
from neuropbr_dist.training.step import gan_step, with_last
from tests.support.parity import (
    Case,
    Row,
    device_batch,
    networks,
    objective,
    relative,
    sample_order,
    whole_state,
)

CASE = Case(steps=1, double=True, smooth=False, w_render=0.5, w_features=0.7)
ROW = Row(engine="single", world=1)


def micro_batches(sizes: list[int], filler: int = 0) -> list[DeviceBatch]:
    """The global batch in micro-batches of `sizes`; `filler` more samples of weight 0 in each."""
    assert sum(sizes) == CASE.batch
    places = sample_order(CASE).indices(0, CASE.batch)
    micros, start = [], 0
    for size in sizes:
        slots = [Slot(*place, 1.0) for place in places[start : start + size]]
        slots += [Slot(*places[start], 0.0)] * filler
        micros.append(device_batch(CASE, slots, "cpu"))
        start += size
    return micros


def step(batch: list[DeviceBatch], *, gan: bool = True, d_steps: int = 1) -> tuple[Any, dict[str, Any]]:
    """The result of one step and the state after it."""
    g, d = networks(CASE, ROW)
    result = gan_step(g, d if gan else None, batch, objective(CASE), d_steps=d_steps)
    return result, whole_state(g, d)


@pytest.mark.parametrize("d_steps", [1, 3])
@pytest.mark.parametrize(
    ("sizes", "filler"), [([1, 1, 1, 1], 0), ([2, 2], 0), ([3, 1], 0), ([4], 2), ([2, 2], 1)]
)
def test_how_a_batch_is_cut_does_not_matter(sizes, filler, d_steps):
    reference, expected = step(micro_batches([4]), d_steps=d_steps)
    result, found = step(micro_batches(sizes, filler), d_steps=d_steps)
    for name, value in expected.items():
        assert relative(found[name], value) <= 1e-12, name
    assert result.losses.keys() == reference.losses.keys()
    for name, value in reference.losses.items():
        assert relative(result.losses[name], value) <= 1e-12, name


def test_losses_are_the_batchs_means():
    batch = micro_batches([4])
    g, d = networks(CASE, ROW)
    goal = objective(CASE)
    with torch.no_grad():
        fake = g.module(batch[0].views)
        judged, true = d.module(fake), features_of(d.module(batch[0].maps))
        maps_loss, terms = goal.reconstruction_loss(fake, batch[0].maps, batch[0].relighting)
    result = gan_step(g, d, batch, goal)
    adversarial = -logits_of(judged).mean()  # hinge
    blocks = zip(features_of(judged), true, strict=True)
    matching = torch.stack([(ours - theirs).abs().mean() for ours, theirs in blocks]).mean()
    torch.testing.assert_close(result.losses["G_gan_loss"], adversarial)
    torch.testing.assert_close(result.losses["G_feature_matching"], matching)
    total = maps_loss.mean() + CASE.w_gan * adversarial + CASE.w_features * matching
    torch.testing.assert_close(result.losses["G_loss"], total)
    for name, value in terms.items():
        torch.testing.assert_close(result.losses[name], value.mean())
    assert set(result.losses) == {"G_loss", "D_loss", "G_gan_loss", "G_feature_matching", *terms}


def test_before_the_gan_starts_the_discriminator_rests():
    _, before = networks_state()
    result, after = step(micro_batches([2, 2]), gan=False)
    assert result.discriminator is None
    assert not {"D_loss", "G_gan_loss", "G_feature_matching"} & set(result.losses)
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("discriminator"), name


def networks_state() -> tuple[Any, dict[str, Any]]:
    built = networks(CASE, ROW)
    return built, whole_state(*built)


def test_matching_features_moves_the_generator_alone():
    """To the bit: the discriminator's first update is the same without it, and its logits are a plain tensor then."""
    off = replace(CASE, w_features=0.0)
    result, matched = step(micro_batches([2, 2]))
    g, d = networks(off, ROW)
    plain = gan_step(g, d, micro_batches([2, 2]), objective(off))
    assert "G_feature_matching" not in plain.losses and torch.is_tensor(d(micro_batches([4])[0].maps))
    assert torch.equal(result.losses["D_loss"], plain.losses["D_loss"])
    for name, value in whole_state(g, d).items():
        assert torch.equal(value, matched[name]) == name.startswith("discriminator"), name


def test_no_gradient_is_left_behind():
    g, d = networks(CASE, ROW)
    gan_step(g, d, micro_batches([2, 2]), objective(CASE), d_steps=2)
    for network in (g, d):
        assert all(p.grad is None for p in network.module.parameters())
        assert all(p.requires_grad for p in network.module.parameters())


def test_the_last_micro_batch_is_marked():
    assert [last for _, last in with_last(micro_batches([1, 1, 2]))] == [False, False, True]
