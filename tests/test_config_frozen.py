"""A frozen configuration can't be written to; the copies made of it are what they were."""

import copy
import dataclasses
import pickle

import pytest

from neuropbr_dist.config import TrainConfig, from_yaml, frozen, load, to_yaml, with_fields, writable


def test_assigning_to_a_frozen_configuration_raises():
    cfg = frozen(load("demo"))
    for part in dataclasses.fields(TrainConfig):
        with pytest.raises(dataclasses.FrozenInstanceError, match="TrainConfig"):
            setattr(cfg, part.name, getattr(cfg, part.name))
        for field in dataclasses.fields(getattr(cfg, part.name)):
            with pytest.raises(dataclasses.FrozenInstanceError, match=field.name):
                setattr(getattr(cfg, part.name), field.name, None)
    assert cfg == load("demo")


def test_what_it_was_made_from_is_left_alone():
    cfg = load("demo")
    copied = frozen(cfg)
    cfg.training.epochs, cfg.model.encoder_channels[0] = 3, 1
    assert copied == load("demo") and cfg.training.epochs == 3


def test_a_frozen_configuration_crosses_processes_and_files():
    """Loader workers get it by pickle, a resume by YAML."""
    cfg = frozen(load("demo"))
    for again in (pickle.loads(pickle.dumps(cfg)), copy.deepcopy(cfg)):
        assert again == cfg
        with pytest.raises(dataclasses.FrozenInstanceError):
            again.data.num_workers = 7
    for again in (from_yaml(to_yaml(cfg), ""), writable(cfg)):
        assert again == cfg
        again.data.num_workers = 7
    assert cfg == load("demo")


def test_another_configuration_is_made_by_naming_fields():
    cfg = frozen(load("demo"))
    other = with_fields(cfg, training={"epochs": 3, "seed": 1}, data={"builtin": True})
    assert (other.training.epochs, other.training.seed, other.data.builtin) == (3, 1, True)
    assert with_fields(other, training={"epochs": 10, "seed": 42}, data={"builtin": False}) == cfg
    with pytest.raises(dataclasses.FrozenInstanceError):
        other.training.epochs = 4
    with pytest.raises(TypeError, match="no_such"):
        with_fields(cfg, training={"no_such": 1})
