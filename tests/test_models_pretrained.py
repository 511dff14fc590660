"""ImageNet weights: from the cache if they are there, a clear reason if not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from neuropbr_dist.models import PretrainedUnavailable, load_backbone, pretrained_backbone
from neuropbr_dist.models.encoder import ResNetEncoder


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_offline_without_a_cache_says_so(empty_cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        PretrainedUnavailable,
        match=r"timm/resnet18\.tv_in1k is not in the local cache and HF_HUB_OFFLINE is set",
    ):
        pretrained_backbone("resnet18")


def test_without_a_network_says_so(empty_cache, monkeypatch):
    with socket.socket() as s:  # a port on which nobody listens
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(
        PretrainedUnavailable,
        match=r"timm/resnet50\.tv2_in1k is not in the local cache and 127\.0\.0\.1 can't",
    ):
        pretrained_backbone("resnet50")


def test_cached_weights_reach_the_encoder(empty_cache, monkeypatch):
    """Weights of our own in the hub's cache layout."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(0)
    weights = timm.create_model("resnet18").state_dict()
    repository = empty_cache / "models--timm--resnet18.tv_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(weights, snapshot / "model.safetensors")

    state = pretrained_backbone("resnet18")
    assert torch.equal(state["stem.0.weight"], weights["conv1.weight"])
    assert torch.equal(state["layer4.1.conv2.weight"], weights["layer4.1.conv2.weight"])


def test_a_norm_without_running_statistics_takes_the_rest():
    state = ResNetEncoder("resnet18", 1, "frozen_batch").state_dict()
    for norm in ("group", "batch"):
        encoder = ResNetEncoder("resnet18", 2, norm)
        load_backbone(encoder, state)
        assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
