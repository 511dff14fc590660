"""A step's launches as one CUDA graph: when they are recorded, and that a replayed run is the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neuropbr_dist.cluster import Environment
from neuropbr_dist.config import TransformConfig, load, with_fields
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.builtin.cache import sample_cameras
from neuropbr_dist.data.device import to_device
from neuropbr_dist.materials.relighting import Relighting, from_above
from neuropbr_dist.training.ema import WeightAverage
from neuropbr_dist.training.networks import build_networks
from neuropbr_dist.training.objective import Objective
from neuropbr_dist.training.setup import SampleFacts, Setup, set_up
from neuropbr_dist.training.update import Update
from tests.support.staged_runs import staged
from tests.support.train_runs import metrics, run, tensors

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ON_A_GPU = {"CUDA_VISIBLE_DEVICES": "0", "DS_ACCELERATOR": "cuda"}
ON_TWO_GPUS = {"CUDA_VISIBLE_DEVICES": "0,1", "DS_ACCELERATOR": "cuda"}
ONE = Environment(launcher="none", world_size=1, local_world_size=1)
TWO = Environment(launcher="torchrun", world_size=2, local_world_size=2)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """Return how far tensors are apart that aren't equal to the bit, as a share of their largest value."""
    assert one.keys() == other.keys()
    return {
        name: float((one[name] - other[name]).abs().max() / other[name].abs().max())
        for name in one
        if not torch.equal(one[name], other[name])
    }


def setup(device: str, env: Environment = ONE, side: int = 64, model=(), loss=(), **training) -> Setup:
    fields = {"memory": "fast", "batch_size": 4, "global_batch_size": 4 * env.world_size, **training}
    model = {"align": "plane", "use_gan": True, **dict(model)}
    cfg = with_fields(load("demo"), training=fields, model=model, loss=dict(loss))
    return set_up(cfg, env, torch.device(device), SampleFacts(side=side))


def test_steps_of_small_pictures_are_recorded_on_one_gpu_and_where_asked_for_under_ddp():
    assert setup("cuda").replays and setup("cuda", cuda_graphs="on").replays
    assert setup("cuda", env=TWO, engine="ddp", cuda_graphs="on").replays


@pytest.mark.parametrize(
    "other",
    [
        {"cuda_graphs": "off"}, {"env": TWO}, {"env": TWO, "engine": "ddp"}, {"global_batch_size": 8}, {"memory": "balanced"},
        {"activation_checkpointing": "full"}, {"side": 1024}, {"model": {"transformer_proj_drop": 0.1}},
        {"model": {"norm": "batch"}}, {"model": {"encoder_norm": "batch"}}, {"loss": {"custom": {"one": 1.0}}},
        {"env": TWO, "engine_discriminator": "ddp", "cuda_graphs": "on"}, {"env": TWO, "cuda_graphs": "on"},
        {"env": TWO, "engine": "ddp", "sample_ranks": 2, "cuda_graphs": "on", "global_batch_size": 4},
    ],
)  # fmt: skip
def test_where_they_would_be_wrong_or_no_gain_they_are_not(other):
    assert not setup("cuda", **other).replays


def test_a_cpu_has_none():
    assert not setup("cpu").replays


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("matching", [0.0, 1.0])
def test_a_replayed_run_is_the_plain_run(tmp_path, matching):
    """Five steps without the discriminator and five with it, of which the last three are replays; rates change at each."""
    fields = {
        "training__device": "cuda", "training__deterministic": True, "data__drop_views": 0.5,
        "data__mixtures": 0.5, "loss__w_feature_matching": matching, "loss__w_render": 0.5, "training__ema_decay": 0.9,
    }  # fmt: skip
    for how in ("auto", "off"):
        ended = run(tmp_path / how, env=ON_A_GPU, training__cuda_graphs=how, **fields)
        assert ended.code == 0, ended.err
    one, other = metrics(tmp_path / "auto"), metrics(tmp_path / "off")
    for name in ("train/G_loss", "train/D_loss"):
        found, wanted = ([line[name] for line in lines if name in line] for lines in (one, other))
        assert found == wanted and found
    first, second = tensors(tmp_path / "auto"), tensors(tmp_path / "off")
    assert apart(first, second) == {}


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_a_replayed_run_of_two_ranks_is_the_plain_run(tmp_path):
    """Under DDP, whose gradients a recording averages at once: a sum of two has no order."""
    fields = {
        "training__device": "cuda", "training__deterministic": True, "training__engine": "ddp",
        "loss__w_render": 0.5, "training__ema_decay": 0.9,
    }  # fmt: skip
    for how in ("on", "off"):
        ended = run(tmp_path / how, world=2, env=ON_TWO_GPUS, training__cuda_graphs=how, **fields)
        assert ended.code == 0, ended.err
        assert (", CUDA graphs" in ended.out) == (how == "on")
    first, second = tensors(tmp_path / "on"), tensors(tmp_path / "off")
    assert apart(first, second) == {}


@pytest.mark.gpu
@gpu
def test_each_stage_records_its_own_steps(tmp_path):
    """16, then 32, then 16 px: to the bit the run without graphs, also where the first side comes again."""
    stages = [
        {"until_epoch": i, "image_size": side, "global_batch_size": 2, "batch_size": 2}
        for i, side in ((2, 16), (4, 32), (6, 16))
    ]
    fields = {"training__device": "cuda", "training__deterministic": True, "training__stages": stages}
    for how in ("auto", "off"):
        ended = staged(tmp_path / how, env=ON_A_GPU, training__cuda_graphs=how, **fields)
        assert ended.code == 0, ended.err
        assert ended.out.count(", CUDA graphs") == (3 if how == "auto" else 0)
    first, second = tensors(tmp_path / "auto"), tensors(tmp_path / "off")
    assert apart(first, second) == {}


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("how", ["auto", "off"])
def test_a_step_never_waits_for_the_device(how):
    """From uint8 on the host to the update: with turned samples, and pictures that are finer than the maps."""
    made, device = setup("cuda", cuda_graphs=how, loss={"w_render": 0.5}), torch.device("cuda")
    networks, objective = build_networks(made), Objective(made.cfg, made.compile_losses)
    update = Update(networks, objective, WeightAverage(networks["generator"], 0.9), replayed=made.replays)
    cameras = torch.stack([torch.from_numpy(sample_cameras(0, i).encoded("clean")) for i in range(4)])
    batch = MicroBatch(
        views=torch.randint(256, (4, 3, 3, 256, 256), dtype=torch.uint8).pin_memory(),
        maps=torch.randint(256, (4, 8, 64, 64), dtype=torch.uint8).pin_memory(),
        weight=torch.ones(4).pin_memory(), keys=["a", "b", "c", "d"], orientations=[0, 3, 5, 6],
        cameras=cameras.pin_memory(), relighting=Relighting(*(places.clone().pin_memory() for places in from_above(4))),
    )  # fmt: skip

    def step() -> None:
        networks["generator"].set_learning_rate(1e-4)
        update([to_device(batch, 4, TransformConfig(), device)], 1, gan=True)

    for _ in range(3):  # the third is recorded
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
