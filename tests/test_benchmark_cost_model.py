"""The figures of docs/scaling.md, and the start of 512 ranks without a process."""

from __future__ import annotations

import pytest
import torch

from benchmarks import cost_model
from benchmarks.strip_cost import CountedStrip, sent_in_a_step
from neuropbr_dist.config import load, with_fields
from neuropbr_dist.data.order import SampleOrder, micro_batches, step_micro_batches
from neuropbr_dist.errors import UserError

BY_NAME = {engine.name: engine for engine in cost_model.ENGINES}


def test_the_page_is_up_to_date():
    page = cost_model.PAGE.read_text()
    assert cost_model.filled(page) == page, "run: python -m benchmarks.cost_model --write"


def test_a_page_without_a_table_is_refused():
    with pytest.raises(UserError, match="wants one <!-- held --> and one <!-- end held -->"):
        cost_model.filled(cost_model.PAGE.read_text().replace("<!-- held -->", ""))


def test_known_cases():
    """Of the ZeRO paper: 16 bytes a parameter on one rank; on many 4, 2 and nothing."""
    for engine in cost_model.ENGINES:
        assert engine.held(1, 8) == 16 and engine.moved(1, 8) == 0 and engine.across(8, 8) == 0
    held = {name: engine.held(10**9, 8) for name, engine in BY_NAME.items()}
    assert held == pytest.approx(
        {"ddp": 16, "ZeRO-1": 4, "ZeRO-2": 2, "ZeRO-3": 0, "fsdp": 0, "fsdp --shard node": 2}, abs=1e-6
    )
    # An all-reduce is a reduce-scatter and an all-gather; ZeRO-3 moves 1.5 times what ZeRO-2 does.
    assert BY_NAME["ZeRO-3"].moved(64, 8) == 1.5 * BY_NAME["ZeRO-2"].moved(64, 8)
    assert BY_NAME["ddp"].moved(2, 8) == 4


def test_sharding_inside_a_node_is_full_sharding_on_one_and_crosses_less_on_many():
    node, world = BY_NAME["fsdp --shard node"], BY_NAME["fsdp"]
    assert (node.held(8, 8), node.moved(8, 8)) == (world.held(8, 8), world.moved(8, 8))
    for n in (16, 64, 512, 1024):
        assert node.across(n, 8) < world.across(n, 8)
        assert node.held(n, 8) > world.held(n, 8)
        assert cost_model.ring_latency(n, 8) > cost_model.ring_latency(8, 8)
    # A float32 all-reduce of shards against two bf16 gathers and a float32 reduction: on many nodes the same.
    assert node.across(1024, 8) / world.across(1024, 8) > 0.98


@pytest.mark.parametrize("global_batch", [512, 600, 1024])
def test_the_start_of_512_ranks(global_batch):
    """Two epochs and a bit of a set that nothing divides: each sample once an epoch, on one rank."""
    world, n, batch_size = 512, 3001, 2
    orders = [SampleOrder(n, global_batch, 3, seed=7) for _ in range(world)]
    plan = micro_batches(global_batch, world, batch_size)
    seen: set[tuple[int, int]] = set()
    cursor, shares = 0, set()
    while cursor < 2 * n:
        taken = 0
        for rank, order in enumerate(orders):
            micro = step_micro_batches(order, cursor, world, rank, batch_size)
            assert len(micro) == plan.per_step and {len(m) for m in micro} == {plan.size}
            own = [(slot.epoch, slot.index) for m in micro for slot in m if slot.weight]
            assert not seen.intersection(own)  # no other rank, no earlier step
            seen.update(own)
            taken += len(own)
            shares.add(len(own))
        assert taken == global_batch
        cursor += taken
    assert max(shares) - min(shares) <= 1
    assert {sample for sample in seen if sample[0] < 2} == {(e, i) for e in (0, 1) for i in range(n)}
    # Two permutations of 8 bytes a sample at most, however far the run has come.
    assert all(sum(p.nbytes for p in order._permutations.values()) <= 2 * 8 * n for order in orders)


def test_what_partners_send_is_counted_in_the_networks():
    cfg = load("default")
    small = with_fields(cfg, model={"transformer_depth": 1, "encoder_backbone": "resnet18", "use_gan": False})
    for ranks in (2, 4):
        sent = sent_in_a_step(small, 256, ranks)
        tokens = 3 * 16 * 16 // ranks * small.model.transformer_dim
        assert sent.tokens_sent == 2 * 4 * tokens * 2 * (ranks - 1) // ranks, (
            "qkv and what comes of it, there and back"
        )
        assert (sent.index, sent.first, sent.last) == (ranks // 2 - 1, ranks == 2, False)
    one_side, both = (sent_in_a_step(small, 256, ranks).rows_sent for ranks in (2, 4))
    assert one_side < both <= 2 * one_side
    more = sent_in_a_step(with_fields(small, model={"use_gan": True}), 512, 2)
    assert more.exchanges > sent.exchanges


def test_a_rank_that_has_no_partner_below_sends_up_alone():
    strip = CountedStrip(2)
    wide = strip.with_halo(torch.empty(1, 2, 4, 8, dtype=torch.bfloat16), 1, 2)
    assert wide.shape == (1, 2, 7, 8) and strip.rows_sent == 2 * 8 * 2 * 1
    assert strip.gathered(torch.empty(3)).shape == (2, 3) and strip.sums_sent == 12
