"""The global sample cursor: nothing twice, nothing left out, at any world size."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from neuropbr_dist.data.order import (
    SampleOrder,
    micro_batches,
    rank_share,
    seeded_permutation,
    step_micro_batches,
)
from neuropbr_dist.errors import UserError


def real(plan):
    """(epoch, index) of the weight-1 slots of one rank."""
    return [(slot.epoch, slot.index) for micro in plan for slot in micro if slot.weight == 1]


def step(order, cursor, world_size, batch_size):
    """The weight-1 slots of all ranks, in the order of ranks; checks what must hold on each."""
    plans = [step_micro_batches(order, cursor, world_size, rank, batch_size) for rank in range(world_size)]
    shapes = {tuple(len(micro) for micro in plan) for plan in plans}
    size, per_step = micro_batches(order.global_batch, world_size, batch_size)
    assert shapes == {(size,) * per_step}
    shares = [len(real(plan)) for plan in plans]
    assert max(shares) - min(shares) <= 1
    batch = [slot for plan in plans for slot in real(plan)]
    for plan in plans:
        filler = {(slot.epoch, slot.index) for micro in plan for slot in micro if slot.weight == 0}
        assert filler <= set(real(plan) or batch)  # nothing more to read than a rank's own samples
    return batch


def test_ranks_together_are_the_batch():
    rng = random.Random(3)
    for _ in range(300):
        n, global_batch = rng.randint(1, 40), rng.randint(1, 24)
        order = SampleOrder(n, global_batch, epochs=rng.randint(1, 5), seed=rng.randint(0, 9))
        cursor = rng.randrange(order.total_samples)
        world_size, batch_size = rng.randint(1, global_batch), rng.randint(1, 8)
        expected = order.indices(cursor, order.batch_size_at(cursor))
        assert len(expected) == min(global_batch, order.total_samples - cursor)
        assert step(order, cursor, world_size, batch_size) == expected


@pytest.mark.parametrize(("n", "global_batch"), [(23, 8), (5, 8), (64, 8), (101, 12)])
def test_exactly_once_an_epoch_while_the_world_changes(n, global_batch):
    order = SampleOrder(n, global_batch, epochs=6, seed=42)
    worlds, cursor, steps, seen = (4, 2, 3, 1, 4), 0, 0, Counter()
    while cursor < order.total_samples:
        world_size = worlds[min(5 * steps // order.steps, 4)]
        # A new object each step: the cursor is all that a resume needs.
        seen.update(step(SampleOrder(n, global_batch, 6, 42), cursor, world_size, batch_size=2))
        cursor += order.batch_size_at(cursor)
        steps += 1
    assert steps == order.steps
    assert seen == Counter({(epoch, index): 1 for epoch in range(6) for index in range(n)})


def test_run_length_and_epochs():
    order = SampleOrder(n=10, global_batch=4, epochs=3, seed=0)
    assert (order.total_samples, order.steps) == (30, 8)
    assert [order.batch_size_at(cursor) for cursor in (0, 8, 28, 30)] == [4, 4, 2, 0]
    assert [order.epoch_of(cursor) for cursor in (0, 8, 9, 10, 29)] == [0, 0, 0, 1, 2]
    assert [epoch for epoch, _ in order.indices(8, 4)] == [0, 0, 1, 1]
    for cursor, count in ((28, 3), (-1, 1), (31, 0)):
        with pytest.raises(IndexError):
            order.indices(cursor, count)
    with pytest.raises(ValueError, match="n is 0"):
        SampleOrder(n=0, global_batch=1, epochs=1, seed=0)


def test_epochs_and_seeds_differ_and_repeat():
    def epoch(seed, number):
        return [index for _, index in SampleOrder(50, 1, 4, seed).indices(50 * number, 50)]

    orders = [tuple(epoch(seed, number)) for seed in (0, 1, -1) for number in range(4)]
    assert len(set(orders)) == 12
    assert tuple(epoch(1, 2)) == orders[6]
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_the_permutation_never_changes():
    """A resumed run, under another numpy, must go on in the same order."""
    assert seeded_permutation(10, 42, 0).tolist() == [4, 8, 1, 9, 3, 6, 0, 7, 2, 5]
    assert seeded_permutation(1, 0).tolist() == [0]


def test_permutations_are_even():
    """Each element comes first about equally often (chi-square, 19 degrees of freedom, p = 0.001)."""
    counts = np.bincount([seeded_permutation(20, 5, epoch)[0] for epoch in range(4000)], minlength=20)
    assert ((counts - 200) ** 2 / 200).sum() < 43.8


def test_large_sets_hold_two_epochs_and_512_ranks_take_their_own_share():
    order = SampleOrder(n=1_000_000, global_batch=1536, epochs=3, seed=1)
    cursor = 1_000_000 - 700  # straddles two epochs
    batch = [slot for rank in range(512) for slot in real(step_micro_batches(order, cursor, 512, rank, 2))]
    assert batch == order.indices(cursor, 1536)
    assert [epoch for epoch, _ in batch] == [0] * 700 + [1] * 836
    order.indices(2_000_000, 1)
    assert len(order._permutations) == 2


def test_more_epochs_than_two_in_one_batch():
    order = SampleOrder(n=3, global_batch=16, epochs=20, seed=0)
    counts = Counter(order.indices(2, 16))
    assert set(counts.values()) == {1}
    assert [epoch for epoch, _ in order.indices(2, 16)] == [0] + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [
        5
    ] * 3


def test_shares_differ_by_at_most_one():
    for count in range(12):
        for world_size in range(1, 9):
            shares = [rank_share(count, world_size, rank) for rank in range(world_size)]
            covered = [i for start, length in shares for i in range(start, start + length)]
            assert covered == list(range(count))
            assert max(length for _, length in shares) - min(length for _, length in shares) <= 1


@pytest.mark.parametrize(
    ("global_batch", "world_size", "batch_size", "expected"),
    [
        (8, 2, 4, (4, 1)),
        (8, 2, 3, (2, 2)),
        (8, 3, 4, (3, 1)),
        (7, 1, 4, (1, 7)),
        (10, 3, 2, (2, 2)),
        (4, 4, 8, (1, 1)),
    ],
)
def test_micro_batch_is_the_largest_divisor_that_fits(global_batch, world_size, batch_size, expected):
    assert micro_batches(global_batch, world_size, batch_size) == expected


def test_a_batch_of_any_size_is_cut_at_once():
    assert micro_batches(2**40, 2, 2**39) == (2**39, 1) and micro_batches(2**40, 1, 3 * 2**30) == (2**31, 512)
    assert micro_batches(2**31 - 1, 1, 4) == micro_batches(2**31 - 1, 1, 2**30) == (1, 2**31 - 1), "a prime"


def test_a_world_above_the_global_batch_is_refused():
    with pytest.raises(UserError, match=r"training\.global_batch_size = 4 is less than the world size 5"):
        step_micro_batches(SampleOrder(10, 4, 1, 0), 0, 5, 0, 1)
