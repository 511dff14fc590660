"""What is settled at a run's first start and saved, and what a saved configuration without it means."""

from __future__ import annotations

import pytest
import torch
import yaml

from neuropbr_dist.cluster import Environment
from neuropbr_dist.config import TrainConfig, as_saved, from_yaml, load, resolve, to_yaml
from neuropbr_dist.config.architecture import IMAGENET_STATS
from neuropbr_dist.training.setup import SampleFacts, set_up

NEW = {"model": ("align", "skip_merge", "token_embedding", "normals"), "data": ("min_confidence", "drop_views", "camera_jitter")}  # fmt: skip


def started(cfg: TrainConfig, align: str = "none") -> TrainConfig:
    """What a first start on such samples saves."""
    facts = SampleFacts(side=64, align=align)
    return set_up(resolve(cfg), Environment(launcher="none"), torch.device("cpu"), facts).cfg


def small() -> TrainConfig:
    cfg = load("demo")
    cfg.model.use_gan = False
    return cfg


@pytest.mark.parametrize("align", ["plane", "none"])
def test_nothing_is_left_open_after_a_start(align):
    cfg = started(small(), align)
    assert cfg.model.align == align
    assert "auto" not in (cfg.model.skip_merge, cfg.model.token_embedding, cfg.model.normals)
    assert cfg.transform.use_imagenet_stats is False
    again = from_yaml(to_yaml(cfg), "")
    assert as_saved(again).model == again.model


def test_a_word_wins_over_what_the_samples_say():
    cfg = small()
    cfg.model.align = "none"
    assert started(cfg, "plane").model.align == "none"


def test_a_saved_run_of_before_means_what_it_was():
    tree = yaml.safe_load(to_yaml(started(small())))
    tree["transform"]["use_imagenet_stats"] = False  # as every older release has saved it
    for part, names in NEW.items():
        for name in names:
            del tree[part][name]
    old = as_saved(from_yaml(yaml.safe_dump(tree), ""))
    m = old.model
    assert (m.align, m.skip_merge, m.token_embedding, m.normals) == ("none", "mean", "none", "free")
    assert started(old, "plane").model == m
    assert started(old).transform.mean == [0.5] * 3


def test_a_pretrained_encoder_gets_what_it_expects():
    cfg = load("quick_test")
    cfg.model.use_gan = False
    fed = started(cfg).transform
    assert (fed.mean, fed.std) == IMAGENET_STATS and fed.use_imagenet_stats is True
    cfg.model.encoder_pretrained = False  # as where the weights can't be had
    assert started(cfg).transform.use_imagenet_stats is False and started(cfg).transform.std == [0.5] * 3


@pytest.mark.parametrize(
    "fields", [{"use_imagenet_stats": False}, {"mean": [0.4, 0.4, 0.4]}, {"std": [0.3] * 3}]
)
def test_what_was_said_of_the_views_stays(fields):
    cfg = load("quick_test")
    cfg.model.use_gan = False
    for name, value in fields.items():
        setattr(cfg.transform, name, value)
    fed = started(cfg).transform
    assert fed.use_imagenet_stats is False
    assert all(getattr(fed, name) == value for name, value in fields.items())
