"""Memory plans: what each computes again, that none changes the numbers, and which one is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from neuropbr_dist.config import load, with_fields
from neuropbr_dist.errors import UserError
from neuropbr_dist.models import Generator
from neuropbr_dist.parallel.activation import checkpoint_segment
from neuropbr_dist.parallel.blocks import kind_of, prepare_segments
from neuropbr_dist.training.estimate import Need, State, choose_plan, rendering_bytes
from neuropbr_dist.training.memory import GENERATOR_PLANS, PLANS, memory_told, recompute_patterns
from tests.support.said import assert_names

GIB = 2**30


def small_model():
    model = load("default").model
    model.encoder_backbone, model.encoder_pretrained = "resnet18", False
    model.transformer_dim, model.transformer_num_heads, model.transformer_depth = 32, 2, 2
    return model


def gradients(patterns) -> list[torch.Tensor]:
    torch.manual_seed(0)
    net = Generator(small_model()).double()
    prepare_segments(net.segments(), recompute=patterns, compile_blocks=False)
    views = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    net(views).square().mean().backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("plan", PLANS[1:])
def test_a_plan_changes_no_gradient(plan):
    for found, wanted in zip(gradients(GENERATOR_PLANS[plan]), gradients("none"), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_the_plane_asks_for_more():
    """Seven channels a view, and skips of several merges."""

    def bytes_at(size, **changes):
        cfg = load("default")
        cfg.model = replace(small_model(), use_gan=False, **changes)
        return Need(cfg, torch.float32, "single", 0, 1).at(size)["fast"]

    plain, mean, most = (
        bytes_at(64, align=align, skip_merge=merge, normals="free")
        for align, merge in (("none", "mean"), ("plane", "mean"), ("plane", "max_mean_var"))
    )
    assert bytes_at(64) == plain
    assert mean - plain >= 3 * 4 * 64 * 64 * 4
    assert most - mean >= 2 * 64 * 64 * 64 * 4  # the stem's skip alone


def test_every_pattern_names_a_segment_of_the_default_or_the_unet_encoder():
    model = small_model()
    names = list(Generator(model).segments())
    model.encoder_type, model.encoder_channels = "unet", [8, 16, 16, 16, 16]
    names += list(Generator(model).segments())
    for plan in GENERATOR_PLANS.values():
        for pattern in plan:
            assert any(kind_of(name, {pattern: "hit"}) == "hit" for name in names), pattern


@pytest.mark.parametrize("plan", ["fast", "balanced"])
def test_attention_is_computed_once_where_there_is_room(plan):
    assert kind_of("fusion.blocks.0", recompute_patterns(plan, "plan", "generator")) == "none"


def test_low_keeps_attention():
    assert kind_of("fusion.blocks.0", recompute_patterns("low", "plan", "generator")) == "selective"


def test_activation_checkpointing_overrules_the_plan():
    assert recompute_patterns("fast", "full", "generator") == {"*": "full"}
    assert recompute_patterns("low", "selective", "discriminator") == {}


def test_the_last_pattern_that_matches_counts():
    assert kind_of("encoder.stem", {"encoder.*": "full", "encoder.stem": "none"}) == "none"
    assert kind_of("encoder.layer1", {"encoder.*": "full", "encoder.stem": "none"}) == "full"
    assert kind_of("decoder.x", {"encoder.*": "full"}) == "none"


def test_a_split_segment_runs_one_sample_at_a_time():
    sizes: list[int] = []

    class Noted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return x.sin()

    module, x = Noted(), torch.randn(3, 2, requires_grad=True)
    checkpoint_segment(module, "split")
    module(x).sum().backward()
    assert sizes == [1] * 6  # each sample, and each again in backward
    torch.testing.assert_close(x.grad, x.detach().cos())


def need(memory: str = "auto") -> Need:
    cfg = load("guide")
    cfg.training.memory = memory
    return Need(cfg, dtype=torch.bfloat16, engine="single", stage=0, world=1)


@pytest.mark.parametrize(("room", "plan"), [(78, "fast"), (44, "balanced"), (23, "low"), (15.7, "low")])
def test_the_fastest_plan_that_fits_is_chosen(room, plan):
    """At 2048 px: an 80 GB, a 48 GB, a 24 GB and a 16 GB card."""
    name, why = choose_plan(need(), 2048, int(room * GIB), "cuda")
    assert name == plan and why.endswith(f" of {room:.1f} GiB free")


def test_rendering_counts_where_it_holds_more_than_the_network():
    cfg = load("demo")
    cfg.model.encoder_channels, cfg.model.transformer_dim, cfg.model.use_gan = [4, 4], 4, False
    cfg.training.batch_size = 8
    stored = Need(cfg, dtype=torch.float32, engine="single", stage=0, world=1)
    assert rendering_bytes(cfg, 64) == 0
    online = replace(stored, cfg=with_fields(cfg, data={"render": "online"}))
    assert rendering_bytes(online.cfg, 64) == 500 * 8 * 128**2
    assert (
        online.at(64)["low"] == online.state().held + rendering_bytes(online.cfg, 64) > stored.at(64)["low"]
    )
    assert rendering_bytes(online.cfg, 1024) == 500 * 8 * 1024**2


MEASURED = [
    ("group", "single", 0, 1, 2048, {"fast": 63.7, "balanced": 34.3, "low": 14.0}),
    ("frozen_batch", "single", 0, 1, 2048, {"fast": 44.5, "balanced": 29.1, "low": 14.0}),
    ("frozen_batch", "single", 0, 1, 4096, {"low": 46.4}),
    ("frozen_batch", "fsdp", 0, 2, 2048, {"balanced": 27.0}),
    ("frozen_batch", "fsdp", 0, 4, 2048, {"balanced": 26.2}),
    ("frozen_batch", "deepspeed", 2, 2, 2048, {"balanced": 28.2}),
    ("frozen_batch", "deepspeed", 2, 4, 2048, {"balanced": 27.5}),
]
"""GiB a rank; benchmarks/results/2026-11-26-step-h100.md and -scaling-4xh200.md."""


@pytest.mark.parametrize(("norm", "engine", "stage", "world", "size", "measured"), MEASURED)
def test_the_estimate_is_what_was_measured(norm, engine, stage, world, size, measured):
    cfg = load("guide")
    cfg.model.encoder_norm = norm
    found = Need(cfg, torch.bfloat16, engine, stage, world).at(size)
    for plan, gib in measured.items():
        assert 0.995 * gib <= found[plan] / GIB <= 1.045 * gib, plan


BETWEEN_STEPS = [
    ("single", 0, 1, 3166), ("ddp", 0, 2, 4221), ("fsdp", 0, 2, 1585), ("fsdp", 0, 4, 794),
    ("deepspeed", 1, 2, 2112), ("deepspeed", 2, 4, 1321), ("deepspeed", 3, 1, 4259), ("deepspeed", 3, 4, 1098),
]  # fmt: skip
"""MiB a rank; benchmarks/results/2026-11-26-engines-4xh200.md."""


@pytest.mark.parametrize(("engine", "stage", "world", "mib"), BETWEEN_STEPS)
def test_the_state_between_steps_is_what_was_measured(engine, stage, world, mib):
    """Less the copy of a gathered block, which lives inside a step."""
    found = State.of(load("default").model, engine, stage, world, torch.bfloat16)
    gathered = 276_375_561 * 2 // 4 if engine == "fsdp" or stage == 3 else 0
    assert (found.held - gathered) / 2**20 == pytest.approx(mib, rel=0.05)


@pytest.mark.parametrize(
    ("engine", "stage", "pieces"), [("single", 0, 1), ("ddp", 0, 1), ("fsdp", 0, 2), ("deepspeed", 2, 2)]
)
def test_a_moving_average_is_four_bytes_a_weight_of_the_generator(engine, stage, pieces):
    with_it, without = (
        Need(load(preset), torch.bfloat16, engine, stage, 2).state() for preset in ("default", "guide")
    )
    assert with_it.held - without.held == 4 * 261_018_824 // pieces
    assert with_it.gradients == without.gradients


def test_gradients_of_an_earlier_micro_batch_lie_beside_the_activations():
    one, two = need(), need()
    two.cfg.training.global_batch_size = 2
    state = one.state()
    assert {plan: bytes + state.gradients for plan, bytes in one.at(2048).items()} == two.at(2048)
    assert one.at(192)["low"] == state.bytes  # nothing but state


def test_where_nothing_fits_the_error_names_a_size_that_does():
    with pytest.raises(
        UserError, match=r"2048 px on this cuda device: about 14 GiB needed.*data.image_size=1024"
    ):
        choose_plan(need(), 2048, 12 * GIB, "cuda")


def test_a_named_plan_that_does_not_fit_is_refused_with_one_that_does():
    with pytest.raises(UserError, match=r"training.memory = fast at 2048 px: .*auto or low fits"):
        choose_plan(need("fast"), 2048, 40 * GIB, "cuda")


def test_a_plan_that_is_named_needs_no_reason_and_an_unknown_room_means_low():
    assert choose_plan(need("balanced"), 2048, 78 * GIB, "cuda") == ("balanced", "")
    assert choose_plan(need("balanced"), 2048, None, "cuda") == ("balanced", "")
    assert choose_plan(need(), 2048, None, "cuda") == ("low", "")


@pytest.mark.parametrize(
    ("changes", "runs"),
    [({}, True), ({"encoder_norm": "frozen_batch"}, True), ({"norm": "batch"}, False)],
)
def test_the_estimate_knows_where_the_kernels_run(changes, runs):
    given = need()
    for name, value in changes.items():
        setattr(given.cfg.model, name, value)
    assert given.runs_kernels() is runs
    given.cfg.training.kernels = False
    assert not given.runs_kernels()


def test_a_device_that_is_too_small_is_told_with_what_takes_less():
    with pytest.raises(UserError) as told, memory_told(512, 8, "balanced"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    wanted = ["8 sample(s) of 512 px", "balanced", "training.memory=low", "below 8", "Tried to allocate"]
    assert_names(str(told.value), wanted)
    assert "memory=balanced" not in str(told.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_a_gpu_can_not_hold_is_told():
    with pytest.raises(UserError, match="don't fit into the device's memory"), memory_told(64, 1, "low"):
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
