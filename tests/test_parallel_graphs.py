"""CUDA graphs of the networks' passes: when they are recorded, and that a replayed run is the plain one."""

from __future__ import annotations

import pytest
import torch

from neuropbr_dist.cluster import Environment
from neuropbr_dist.config import TransformConfig, load, with_fields
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.builtin.cache import sample_cameras
from neuropbr_dist.data.device import to_device
from neuropbr_dist.parallel import Pass
from neuropbr_dist.training.networks import build_networks
from neuropbr_dist.training.objective import Objective
from neuropbr_dist.training.setup import SampleFacts, Setup, set_up
from neuropbr_dist.training.step import gan_step
from tests.support.staged_runs import staged
from tests.support.train_runs import metrics, run, tensors

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ON_A_GPU = {"CUDA_VISIBLE_DEVICES": "0", "DS_ACCELERATOR": "cuda"}
ONE = Environment(launcher="none", world_size=1, local_world_size=1)
TWO = Environment(launcher="torchrun", world_size=2, local_world_size=2)


def setup(device: str, env: Environment = ONE, side: int = 64, model=(), **training) -> Setup:
    fields = {"memory": "fast", "batch_size": 4, "global_batch_size": 4 * env.world_size, **training}
    cfg = with_fields(load("demo"), training=fields, model={"align": "plane", "use_gan": True, **dict(model)})
    return set_up(cfg, env, torch.device(device), SampleFacts(side=side))


def test_on_one_gpu_small_pictures_passes_are_recorded():
    networks = setup("cuda").networks
    assert networks["generator"].replayed == (Pass((4, 3, 7, 64, 64)),)
    assert networks["discriminator"].replayed == (Pass((8, 8, 64, 64)), Pass((4, 8, 64, 64), frozen=True))


@pytest.mark.parametrize(
    "other",
    [
        {"cuda_graphs": "off"}, {"env": TWO}, {"env": TWO, "engine": "ddp"}, {"global_batch_size": 8}, {"memory": "balanced"},
        {"activation_checkpointing": "full"}, {"side": 1024}, {"model": {"transformer_proj_drop": 0.1}},
        {"model": {"norm": "batch"}}, {"model": {"encoder_norm": "batch"}},
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
    """Also where the discriminator has begun to train, which it does in the third epoch."""
    fields = {
        "training__device": "cuda", "training__deterministic": True, "data__drop_views": 0.5,
        "data__mixtures": 0.5, "loss__w_feature_matching": matching,
    }  # fmt: skip
    for how in ("auto", "off"):
        ended = run(tmp_path / how, env=ON_A_GPU, training__cuda_graphs=how, **fields)
        assert ended.code == 0, ended.err
    one, other = metrics(tmp_path / "auto"), metrics(tmp_path / "off")
    for name in ("train/G_loss", "train/D_loss"):
        found, wanted = ([line[name] for line in lines if name in line] for lines in (one, other))
        assert found == wanted and found
    first, second = tensors(tmp_path / "auto"), tensors(tmp_path / "off")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@gpu
def test_each_stage_records_its_own_passes(tmp_path):
    """16, then 32, then 16 px: to the bit the run without graphs, also where the first side comes again."""
    stages = [
        {"until_epoch": i, "image_size": side, "global_batch_size": 2, "batch_size": 2}
        for i, side in enumerate((16, 32, 16), 1)
    ]
    fields = {"training__device": "cuda", "training__deterministic": True, "training__stages": stages}
    for how in ("auto", "off"):
        ended = staged(tmp_path / how, env=ON_A_GPU, training__cuda_graphs=how, **fields)
        assert ended.code == 0, ended.err
        assert ended.out.count(", CUDA graphs") == (3 if how == "auto" else 0)
    first, second = tensors(tmp_path / "auto"), tensors(tmp_path / "off")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("how", ["auto", "off"])
def test_a_step_never_waits_for_the_device(how):
    """From uint8 on the host to the update: with turned samples, and pictures that are finer than the maps."""
    made, device = setup("cuda", cuda_graphs=how), torch.device("cuda")
    networks, objective = build_networks(made), Objective(made.cfg, made.compile_losses)
    cameras = torch.stack([torch.from_numpy(sample_cameras(0, i).encoded("clean")) for i in range(4)])
    batch = MicroBatch(
        views=torch.randint(256, (4, 3, 3, 256, 256), dtype=torch.uint8).pin_memory(),
        maps=torch.randint(256, (4, 8, 64, 64), dtype=torch.uint8).pin_memory(),
        weight=torch.ones(4).pin_memory(), keys=["a", "b", "c", "d"], orientations=[0, 3, 5, 6],
        cameras=cameras.pin_memory(),
    )  # fmt: skip

    def step() -> None:
        ready = to_device(batch, 4, TransformConfig(), device)
        gan_step(networks["generator"], networks["discriminator"], [ready], objective)

    step()
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
