"""What a run was trained on is saved with it, so that a resume takes the same."""

from __future__ import annotations

import pytest

from neuropbr_dist.cluster import Environment
from neuropbr_dist.config import TrainConfig, from_yaml, to_yaml
from neuropbr_dist.data.sources import BuiltinSource, default_folders
from neuropbr_dist.training.data import open_source
from tests.support.material_files import write_set
from tests.support.said import said


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """Nothing named, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    made = TrainConfig()
    made.data.builtin_count, made.data.image_size = 2, 32
    made.data.builtin_cache = str(tmp_path / "cache")
    made.training.checkpoint_dir = str(tmp_path / "run")
    return made


def opened(cfg):
    with said() as lines:
        return open_source(cfg, Environment(launcher="none")), lines


def saved(cfg):
    return from_yaml(to_yaml(cfg), "")


def test_a_run_on_built_in_materials_stays_on_them(cfg, tmp_path):
    source, lines = opened(cfg)
    assert isinstance(source, BuiltinSource) and "No data named and none at ./data" in lines[0]
    write_set(tmp_path / "data", {"sample_0000": "a", "sample_0001": "b"}, size=32)
    again, lines = opened(saved(cfg))
    assert isinstance(again, BuiltinSource) and lines[0].startswith("data.builtin: training on 2 built-in")
    assert again.entries == source.entries
    named = saved(cfg)
    named.data.input_dir, named.data.output_dir = "data/input", "data/output"
    assert not isinstance(opened(named)[0], BuiltinSource)


def test_a_run_on_what_lay_at_data_names_it(cfg, tmp_path, monkeypatch):
    write_set(tmp_path / "data", {"sample_0000": "a", "sample_0001": "b"}, size=32)
    source, _ = opened(cfg)
    assert not isinstance(source, BuiltinSource)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folders = default_folders(saved(cfg).data)
    assert folders is not None and [str(folder) for folder in folders] == ["data/input", "data/output"]
