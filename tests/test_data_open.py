"""The one door to the data: what a configuration means, for one process, for many, and ever after."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from neuropbr_dist.cluster import Environment
from neuropbr_dist.config import DataConfig, TrainConfig, from_yaml, to_yaml
from neuropbr_dist.data.open import fill_cache, first_files, open_samples, open_source, resolve_data
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.packed.source import PackedSource
from neuropbr_dist.data.sources import BuiltinSource, FileSource
from neuropbr_dist.errors import UserError
from neuropbr_dist.ranks import all_gather_object, rank
from neuropbr_dist.training.facts import describe_samples
from neuropbr_dist.training.setup import SampleFacts, set_up
from tests.support.distributed import run
from tests.support.material_files import write_set
from tests.support.said import said

TWO = {"sample_0000": "a", "sample_0001": "b"}


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """Nothing named, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    made = TrainConfig()
    made.data.builtin_count, made.data.image_size, made.model.use_gan = 2, 32, False
    made.data.builtin_cache = str(tmp_path / "cache")
    made.training.checkpoint_dir, made.model.align = str(tmp_path / "run"), "none"
    return made


def opened(cfg):
    """The samples, and the first line that is said of them."""
    samples = open_samples(cfg)
    with said() as lines:
        describe_samples(cfg, samples)
    return samples, lines[0]


def saved(cfg, samples):
    """The configuration as the run has saved it, read back."""
    setup = set_up(cfg, Environment(launcher="none"), torch.device("cpu"), SampleFacts.of(samples))
    return from_yaml(to_yaml(setup.cfg), "")


# -- what is meant ---------------------------------------------------------------------------


def test_a_run_on_built_in_materials_stays_on_them(cfg, tmp_path):
    before = to_yaml(cfg)
    samples, line = opened(cfg)
    assert isinstance(samples.source, BuiltinSource) and line.startswith("No data named and none at ./data")
    assert to_yaml(cfg) == before and samples.data.builtin
    write_set(tmp_path / "data", TWO, size=32)
    again, line = opened(saved(cfg, samples))
    assert isinstance(again.source, BuiltinSource) and line.startswith("data.builtin: training on 2 built-in")
    assert again.fingerprint == samples.fingerprint
    named = saved(cfg, samples)
    named.data.input_dir, named.data.output_dir = "data/input", "data/output"
    assert isinstance(open_samples(named).source, FileSource)


def test_a_run_on_what_lay_at_data_names_it(cfg, tmp_path, monkeypatch):
    write_set(tmp_path / "data", TWO, size=32)
    samples, _ = opened(cfg)
    assert isinstance(samples.source, FileSource)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    later = resolve_data(saved(cfg, samples).data)
    assert (later.input_dir, later.output_dir, later.builtin) == ("data/input", "data/output", False)
    with pytest.raises(UserError, match=r"data/input: no such folder \(data.input_dir\)"):
        open_samples(saved(cfg, samples))


def test_what_is_resolved_stays_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "data", TWO)
    for data in (
        DataConfig(packed_dir="p", builtin=True), DataConfig(input_dir="i", output_dir="o", builtin=True),
        DataConfig(builtin=True), DataConfig(), DataConfig(materials_dir="m"),
    ):  # fmt: skip
        resolved = resolve_data(data)
        assert resolve_data(resolved) == resolved
        assert resolved.render == ("online" if data.materials_dir else "stored")


def test_every_door_leads_to_the_same_samples(cfg, tmp_path):
    """A run's, and that of a process by itself, as inference and the doctor open it."""
    folders = write_set(tmp_path / "set", TWO, renders=("clean", "dirty"), size=32)
    assert pack(*folders, tmp_path / "packed", progress=False).clean
    files = DataConfig(
        input_dir=str(folders[0]), output_dir=str(folders[1]), render_curriculum=1, image_size=32
    )
    packed = DataConfig(packed_dir=str(tmp_path / "packed"), render_curriculum=1)
    prints = set()
    for data, kind in ((files, FileSource), (packed, PackedSource)):
        samples, alone = open_samples(replace(cfg, data=data)), open_source(data, seed=0)
        assert type(alone) is type(samples.source) is kind and samples.data == replace(data, render="stored")
        for mine, other in zip(samples.source.entries, alone.entries, strict=True):
            assert mine.key == other.key
            for one, two in zip(samples.source.load(mine), alone.load(other), strict=True):
                np.testing.assert_array_equal(one, two)
        prints.add(samples.fingerprint)
    assert len(prints) == 1
    assert first_files(files) == [*alone_files(folders, "clean/sample_0000"), *map_files(folders, "a")]
    assert {path.parent for path in first_files(packed)} == {tmp_path / "packed"}
    assert all(path.is_file() for path in (*first_files(files), *first_files(packed)))
    assert first_files(cfg.data) == []


def alone_files(folders, key):
    return [folders[0] / key / f"{i}.png" for i in range(3)]


def map_files(folders, material):
    return [folders[1] / material / f"{name}.png" for name in ("albedo", "roughness", "metallic", "normal")]


def test_built_in_samples_are_made_before_they_are_read(cfg):
    samples = open_samples(cfg)
    assert not os.path.exists(cfg.data.builtin_cache)
    fill_cache([samples.source])
    made = {path.name for path in samples.source.cache.folder.iterdir()}
    assert made == {f"{i:06d}_{part}.npy" for i in range(2) for part in ("maps", "clean")}


# -- on several ranks ------------------------------------------------------------------------


def open_on(cfgs):
    """On each rank with its own configuration: what is opened, or the error; then a sign that all go on."""
    try:
        samples = open_samples(cfgs[rank()])
        fill_cache([samples.source], 2)
        found = samples.fingerprint, samples.data
    except (UserError, RuntimeError) as error:
        found = f"{type(error).__name__}: {error}"
    return found, sum(all_gather_object(1))


def open_on_two(*cfgs):
    results = run(2, f"{__name__}:open_on", cfgs=[*cfgs, cfgs[-1]][:2])
    assert [together for _, together in results] == [2, 2]
    assert results[0][0] == results[1][0]
    return results[0][0]


@pytest.mark.multiprocess
def test_two_ranks_open_what_one_does(cfg, tmp_path):
    one = open_samples(cfg)
    assert open_on_two(cfg) == (one.fingerprint, one.data)
    assert len(list(one.source.cache.folder.iterdir())) == 4
    folders = write_set(tmp_path / "set", TWO, size=32)
    cfg.data.input_dir, cfg.data.output_dir = map(str, folders)
    one = open_samples(cfg)
    assert open_on_two(cfg) == (one.fingerprint, one.data)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"headers-0.json", "headers-1.json"}


@pytest.mark.multiprocess
def test_what_one_rank_meets_ends_all(cfg, tmp_path):
    folders = write_set(tmp_path / "set", TWO, size=32)
    assert pack(*folders, tmp_path / "packed", progress=False).clean
    cfg.data.input_dir, cfg.data.output_dir = map(str, folders)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "headers-1.json").mkdir()
    assert "headers-1.json: can't be written" in open_on_two(cfg)
    (tmp_path / "run" / "headers-1.json").rmdir()
    broken = folders[0] / "clean/sample_0001/2.png"
    broken.write_bytes(broken.read_bytes()[:-5])
    assert "nothing was trained" in open_on_two(cfg) and str(broken) in open_on_two(cfg)

    built_in = replace(cfg, data=DataConfig(builtin=True, builtin_count=2, image_size=16))
    built_in.data.builtin_cache = str(tmp_path / "cache")
    (tmp_path / "file").touch()
    elsewhere = replace(built_in, data=replace(built_in.data, builtin_cache=str(tmp_path / "file")))
    assert open_on_two(built_in, elsewhere)[1].builtin_cache == str(
        tmp_path / "cache"
    )  # rank 0's word counts
    assert "can't keep built-in materials there" in open_on_two(elsewhere)

    packed = replace(cfg, data=DataConfig(packed_dir=str(tmp_path / "packed")))
    shutil.rmtree(tmp_path / "packed" / "shards")
    assert "missing; copy the set again" in open_on_two(packed)
