"""A run is a value: every choice is made once, by one function, and nothing is written to it afterwards."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from neuropbr_dist.cluster import Environment
from neuropbr_dist.config import TrainConfig, load, to_yaml, with_fields
from neuropbr_dist.errors import UserError
from neuropbr_dist.models import smallest_side
from neuropbr_dist.training.memory import GENERATOR_PLANS
from neuropbr_dist.training.setup import SampleFacts, set_up
from tests.support.distributed import ENVIRONMENT, ROOT
from tests.support.said import assert_names
from tests.support.train_runs import metrics, run, tiny_words

CPU, GIB = torch.device("cpu"), 2**30
PARTS = ("generator", "discriminator")


def ranks(world):
    return Environment(launcher="torchrun" if world > 1 else "none", world_size=world, local_world_size=world)


def configured(model=(), **settings):
    cfg = load("demo")
    cfg.training.global_batch_size = None
    for part, fields in ((cfg.training, settings), (cfg.model, dict(model))):
        for name, value in fields.items():
            setattr(part, name, value)
    return cfg


def made(cfg, world=1, side=64, room=None):
    return set_up(cfg, ranks(world), CPU, SampleFacts(side=side), room)


# -- a value -------------------------------------------------------------------------------


def test_assigning_to_a_set_up_or_its_configuration_raises():
    setup = made(load("demo"))
    values = (setup, setup.cfg, setup.cfg.training, setup.samples, setup.networks["generator"], setup.need)
    for value in values:
        for field in dataclasses.fields(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, field.name, None)
    with pytest.raises(TypeError):
        setup.networks["generator"] = None


def test_the_same_question_has_the_same_answer_and_changes_nothing():
    cfg = load("demo")
    before = to_yaml(cfg)
    assert made(cfg, world=2, room=8 * GIB) == made(cfg, world=2, room=8 * GIB)
    assert to_yaml(cfg) == before
    cfg.training.epochs += 1  # it is still the caller's


def test_what_the_configuration_leaves_open_is_filled_in():
    cfg = configured(batch_size=3, epochs=7, model={"encoder_pretrained": True})
    cfg.optimizer.scheduler_epochs = None
    filled = made(cfg, world=2).cfg
    assert filled.training.global_batch_size == 6 and filled.optimizer.scheduler_epochs == 7
    assert not filled.model.encoder_pretrained, "a U-Net encoder has no pretrained weights"
    again = made(filled, world=3).cfg
    assert again == filled, "what is filled in stays, at any world size"


def test_views_are_judged_only_where_they_turn_out_to_be_rectified():
    """`model.align` is open until the samples are known."""
    cfg = configured(model={"discriminator_input": "maps_and_views", "discriminator_norm": "spectral"})
    plane, none = (SampleFacts(side=64, align=align) for align in ("plane", "none"))
    assert set_up(cfg, ranks(1), CPU, plane, None).cfg.model.align == "plane"
    with pytest.raises(UserError, match=r"discriminator_input = maps_and_views needs model\.align = plane"):
        set_up(cfg, ranks(1), CPU, none, None)


def test_a_network_is_described_whole():
    setup = made(configured(ds_config="zero2", batch_size=2, compile="blocks", memory="low"), world=2)
    assert setup.engine == "deepspeed" and setup.precision == "fp32" and setup.compile == "blocks"
    assert setup.micro == (2, 1) and setup.recompute == "memory plan low" and setup.needs_process_group
    assert not setup.compile_losses, "a CPU's compiler takes minutes over them"
    for net in setup.networks.values():
        assert (net.engine, net.ds_file, net.zero_stage, net.dtype) == ("deepspeed", "zero2", 2, None)
        assert net.ds_config["train_batch_size"] == 4 and net.compile_blocks
    assert setup.networks["generator"].recompute == GENERATOR_PLANS["low"]
    assert setup.networks["discriminator"].recompute == {}
    assert setup.parameters["generator"] > setup.parameters["discriminator"] > 0
    alone = made(configured(model={"use_gan": False}))
    assert list(alone.networks) == ["generator"] and not alone.needs_process_group


@pytest.mark.parametrize("room, plan", [(78, "fast"), (23, "low")])
def test_the_memory_plan_is_chosen_by_the_room_and_says_why(room, plan):
    cfg = load("default")
    cfg.training.precision = "bf16"
    setup = made(cfg, side=2048, room=room * GIB)
    assert setup.memory == plan and f"of {room}.0 GiB free" in setup.memory_why
    assert setup.networks["generator"].recompute == GENERATOR_PLANS[plan]
    assert (made(cfg, side=2048).memory, made(cfg, side=2048).memory_why) == ("low", "")
    with pytest.raises(UserError, match="2048 px on this cpu device"):
        made(cfg, side=2048, room=12 * GIB)


@pytest.mark.parametrize(
    "fields, remedy",
    [
        ({"discriminator_ndf": 2**20}, "--config quick_test"),  # nothing fits
        ({"transformer_dim": 2**40}, "the run is too large for any memory: its networks"),
    ],
)
def test_what_can_not_be_is_told_from_what_is_too_large_for_this_memory(fields, remedy):
    with pytest.raises(UserError) as told:
        made(configured(model=fields), room=16 * GIB)
    assert remedy in str(told.value)


def test_the_side_that_fits_is_no_smaller_than_the_discriminator_can_judge():
    cfg = configured(batch_size=64)
    needed = {layers: smallest_side(layers) for layers in (3, 4)}
    assert needed[3] <= 32 < needed[4] <= 64
    for layers, remedy in ((3, "--set data.image_size=32"), (4, "--config quick_test")):
        cfg.model.discriminator_n_layers = layers
        with pytest.raises(UserError) as told:
            made(cfg, room=GIB * 6 // 10)
        assert remedy in str(told.value)


# -- which engine --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, world, engines",
    [
        ({}, 1, ("single", "single")),
        ({}, 2, ("fsdp", "fsdp")),
        ({"ds_config": "zero1"}, 1, ("deepspeed", "deepspeed")),
        ({"ds_config": "zero1"}, 2, ("deepspeed", "deepspeed")),
        ({"engine": "ddp"}, 2, ("ddp", "ddp")),
        ({"engine": "fsdp", "engine_discriminator": "ddp"}, 2, ("fsdp", "ddp")),
        ({"engine_discriminator": "fsdp"}, 1, ("single", "fsdp")),
        ({"ds_config": "zero1", "engine_discriminator": "ddp"}, 2, ("deepspeed", "ddp")),
        (
            {"engine_discriminator": "deepspeed", "ds_config_discriminator": "zero1"},
            2,
            ("fsdp", "deepspeed"),
        ),
    ],
)
def test_auto_engine(settings, world, engines):
    networks = made(configured(**settings), world).networks
    assert tuple(networks[part].engine for part in PARTS) == engines
    assert [networks[part].ds_file is not None for part in PARTS] == [e == "deepspeed" for e in engines]


def test_each_network_has_its_own_deepspeed_file():
    networks = made(configured(ds_config="zero2", ds_config_discriminator="zero1"), world=2).networks
    assert [networks[part].zero_stage for part in PARTS] == [2, 1]


# -- what can't be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, world, named",
    [
        ({"engine": "single"}, 2, ["training.engine = single", "2 ranks", "fsdp"]),
        ({"engine_discriminator": "single"}, 2, ["training.engine_discriminator = single", "2 ranks", "ddp"]),
        ({"engine": "deepspeed"}, 1, ["training.engine = deepspeed", "--ds FILE"]),
        (
            {"engine_discriminator": "deepspeed"},
            1,
            ["training.engine_discriminator", "--ds-discriminator FILE"],
        ),
        ({"global_batch_size": 2}, 3, ["training.global_batch_size = 2", "world size 3"]),
    ],
)
def test_combinations_that_cannot_be(settings, world, named):
    with pytest.raises(UserError) as found:
        made(configured(**settings), world)
    assert_names(found.value, named)


@pytest.mark.parametrize("field", ["norm", "encoder_norm"])
@pytest.mark.parametrize("kind", ["batch", "sync_batch"])
def test_batch_norm_needs_equal_shares(field, kind):
    with pytest.raises(UserError) as found:
        made(configured(model={field: kind}, global_batch_size=4), world=3)
    assert_names(found.value, [f"model.{field} = {kind}", "global_batch_size = 4", "3 ranks"])


@pytest.mark.parametrize("side, named", [(62, "multiple of 4 px"), (16, "needs pictures of")])
def test_pictures_that_cannot_be(side, named):
    with pytest.raises(UserError, match=named):
        made(load("demo"), side=side)


# -- from Python ---------------------------------------------------------------------------

SCRIPT = """
import signal, sys
from neuropbr_dist.cluster import StopReason
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.training.run import train
from neuropbr_dist.training.start import Start

folder, *words = sys.argv[1:]
cfg = Overrides(config="guide", assignments=tuple(words)).configuration()
cfg.training.checkpoint_dir = folder
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
assert train(cfg, Start(stop_after_steps=3)) is StopReason.AFTER_STEPS
assert train(cfg, Start(resume="auto")) is None
assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], "Ctrl-C is Python's again"
cfg.training.epochs += 1  # it is still the caller's
"""


def test_train_is_called_from_python_and_is_the_run_of_the_command(tmp_path):
    words = tiny_words()
    inputs, maps = (words[words.index(flag) + 1] for flag in ("--input-dir", "--output-dir"))
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    fields = [f"data.input_dir={inputs}", f"data.output_dir={maps}", *sets]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "python"), *fields],
        capture_output=True, text=True, timeout=120, cwd=ROOT, env={"PATH": "/usr/bin:/bin", **ENVIRONMENT},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Stopped (--stop-after-steps) after step 3" in done.stdout and "\nDone: " in done.stdout
    assert run(tmp_path / "command").code == 0
    assert metrics(tmp_path / "python") == metrics(tmp_path / "command")
    starts = [json.loads(line) for line in (tmp_path / "python/history.jsonl").read_text().splitlines()]
    assert [line.get("how", line["event"]) for line in starts] == [
        "start", "--stop-after-steps", "start", "finished",
    ]  # fmt: skip


def test_train_checks_what_it_is_given():
    from neuropbr_dist.training.run import train
    from neuropbr_dist.training.start import Start

    cfg = TrainConfig()
    cfg.training.epochs = 0
    with pytest.raises(UserError, match=r"training\.epochs = 0; allowed: int, 1 or more"):
        train(cfg, Start())


# -- ranks that share a sample -------------------------------------------------------------


def test_ranks_that_share_a_sample_count_as_one():
    cfg = configured(sample_ranks=2, batch_size=2)
    setups = [set_up(cfg, replace(ranks(4), rank=rank), CPU, SampleFacts(side=64)) for rank in range(4)]
    assert [setup.data_place for setup in setups] == [(2, 0), (2, 0), (2, 1), (2, 1)]
    assert all(setup.cfg.training.global_batch_size == 4 and setup.micro == (2, 1) for setup in setups)
    assert [made(configured(), world=4).data_place, made(configured()).data_place] == [(4, 0), (1, 0)]


@pytest.mark.parametrize(
    "model, settings, world, side, named",
    [
        ({}, {"sample_ranks": 3}, 4, 64, ["sample_ranks = 3", "the 4 rank(s)", "allowed on 4 rank(s): 1, 2"]),
        ({}, {"sample_ranks": 2}, 1, 64, ["doesn't divide the 1 rank(s)", "allowed on 1 rank(s): 1"]),
        ({}, {"sample_ranks": 8}, 8, 512, ["transformer_num_heads = 4", "allowed on 8 rank(s): 1, 2, 4"]),
        ({}, {"sample_ranks": 4}, 4, 64, ["64 px / 4 = 16 rows", "multiple of 8 rows, 24 or more", ": 1, 2"]),
        ({"use_gan": False}, {"sample_ranks": 4}, 4, 24, ["24 px / 4 = 6 rows", "4 rows, 8 or more", ": 1, 2"]),
        ({"use_gan": False}, {"sample_ranks": 2, "global_batch_size": 1}, 4, 24, ["world size 4, of which 2"]),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_shared(model, settings, world, side, named):
    with pytest.raises(UserError) as found:
        made(configured(model=model, **settings), world, side)
    assert_names(found.value, named)
    assert "\n" not in str(found.value)


def test_what_a_rank_is_asked_for_falls_with_the_ranks_that_share():
    cfg = load("default")
    cfg.training.precision = "bf16"
    whole, half = (
        made(with_fields(cfg, training={"sample_ranks": n}), world=2, side=2048).need for n in (1, 2)
    )
    for plan, wanted in whole.at(2048).items():
        shared = half.at(2048)[plan] - half.state().held
        assert 0.49 < shared / (wanted - whole.state().held) < 0.56, plan
