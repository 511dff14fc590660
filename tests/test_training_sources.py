"""What a run was trained on is saved with it, so that a resume takes the same."""

from __future__ import annotations

import pytest
import torch

from neuropbr_dist.cluster import Environment
from neuropbr_dist.config import TrainConfig, from_yaml, to_yaml
from neuropbr_dist.data.sources import BuiltinSource, default_folders
from neuropbr_dist.training.data import open_samples
from neuropbr_dist.training.facts import describe_samples
from neuropbr_dist.training.setup import SampleFacts, set_up
from tests.support.material_files import write_set
from tests.support.said import said

CPU = torch.device("cpu")


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """Nothing named, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    made = TrainConfig()
    made.data.builtin_count, made.data.image_size, made.model.use_gan = 2, 32, False
    made.data.builtin_cache = str(tmp_path / "cache")
    made.training.checkpoint_dir = str(tmp_path / "run")
    return made


def opened(cfg):
    """The samples, the configuration that is saved with them, and what is said of them."""
    alone = Environment(launcher="none")
    with said() as lines:
        samples = open_samples(cfg, alone)
        describe_samples(cfg.data, samples)
    return samples, set_up(cfg, alone, CPU, SampleFacts.of(samples)).cfg, lines


def saved(cfg):
    return from_yaml(to_yaml(cfg), "")


def test_a_run_on_built_in_materials_stays_on_them(cfg, tmp_path):
    samples, resolved, lines = opened(cfg)
    assert isinstance(samples.source, BuiltinSource) and "No data named and none at ./data" in lines[0]
    assert not cfg.data.builtin, "the one that was asked for stays as it is"
    write_set(tmp_path / "data", {"sample_0000": "a", "sample_0001": "b"}, size=32)
    again, _, lines = opened(saved(resolved))
    assert isinstance(again.source, BuiltinSource)
    assert lines[0].startswith("data.builtin: training on 2 built-in")
    assert again.source.entries == samples.source.entries
    named = saved(resolved)
    named.data.input_dir, named.data.output_dir = "data/input", "data/output"
    assert not isinstance(opened(named)[0].source, BuiltinSource)


def test_a_run_on_what_lay_at_data_names_it(cfg, tmp_path, monkeypatch):
    write_set(tmp_path / "data", {"sample_0000": "a", "sample_0001": "b"}, size=32)
    samples, resolved, lines = opened(cfg)
    assert not isinstance(samples.source, BuiltinSource)
    assert lines == ["Samples: 1 for training, 1 for validation, 32 px"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folders = default_folders(saved(resolved).data)
    assert folders is not None and [str(folder) for folder in folders] == ["data/input", "data/output"]
