"""Arithmetic of a step, counted; what a run makes of it (MFU), down to TensorBoard's file."""

from __future__ import annotations

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from neuropbr_dist.config import load
from neuropbr_dist.models import Discriminator, Generator
from neuropbr_dist.monitor import Meter, RunLog
from neuropbr_dist.training.flops import SampleFlops, matmul_flops, sample_flops
from tests.support.train_runs import run

FLOPS = SampleFlops(generator=100.0, discriminator=1.0)


@pytest.mark.parametrize("preset", ["guide", "default"])
def test_the_guides_step_is_348_tflop_and_so_is_the_defaults(preset):
    """Attention 79, its linears 20, convolutions 16 in G's forward, three times that with backward; and D."""
    assert sample_flops(load(preset), 2048).step(gan=True) == pytest.approx(348.1e12, rel=1e-3)


@pytest.mark.parametrize(
    ("gan", "d_steps", "expected"), [(False, 1, 300), (False, 3, 300), (True, 1, 308), (True, 3, 520)]
)
def test_a_step_is_what_its_passes_are(gan, d_steps, expected):
    assert FLOPS.step(gan=gan, d_steps=d_steps) == expected


def test_passes_counted_one_by_one_come_to_the_same():
    """A real GAN step on a small model, backward passes and all, against three and eight forward passes."""
    cfg = load("demo")
    cfg.model.encoder_channels, cfg.model.transformer_dim, cfg.model.transformer_depth = [8, 16], 32, 1
    g, d = Generator(cfg.model), Discriminator(cfg.model)
    views, maps = torch.randn(1, 3, 3, 64, 64), torch.randn(1, 8, 64, 64)
    # torch doesn't count the CPU's own attention kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fake = g(views)
        (d(maps).mean() + d(fake.detach()).mean()).backward()
        d.requires_grad_(False)
        d(fake).mean().backward()
    expected = sample_flops(cfg, 64).step(gan=True)
    # The first layers need no gradient of their input: a real step is a little less.
    assert 0.9 * expected < counter.get_total_flops() <= expected


def test_without_a_discriminator_there_is_nothing_to_count():
    cfg = load("demo")
    cfg.model.use_gan = False
    assert sample_flops(cfg, 64).discriminator == 0 < sample_flops(cfg, 64).generator


def test_the_share_of_the_ceiling_reaches_tensorboard(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter, log = Meter("cpu", peak_flops=1000.0), RunLog(tmp_path, tensorboard=True, wandb=None, enabled=True)
    for step in (1, 2):
        now[0] += 2.0
        meter.step(samples=4, flops=step * 500.0)
        log.scalars(step, 1, 4 * step, meter.read().scalars())
    log.close()
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("speed/mfu")] == [(1, 0.25), (2, 0.5)]


def test_the_ceiling_is_a_rate_that_a_product_can_reach():
    side, rate = 512, matmul_flops(torch.device("cpu"), torch.float32)
    assert 1e8 < rate < 1e14
    assert 2 * side**3 / rate < 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_a_gpu_logs_it(tmp_path):
    ended = run(
        tmp_path, env={"CUDA_VISIBLE_DEVICES": "0", "DS_ACCELERATOR": "cuda"}, training__device="cuda"
    )
    assert ended.code == 0, ended.err
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [line["speed/mfu"] for line in lines if "train/G_loss" in line]
    assert found and all(0 < share < 1 for share in found)
