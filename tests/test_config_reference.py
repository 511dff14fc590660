"""docs/configuration.md is what the dataclasses say."""

from __future__ import annotations

import dataclasses

from neuropbr_dist.config import PRESETS, Stage, TrainConfig, set_text
from neuropbr_dist.config.overrides import FIELD_FLAGS, INTEGER_FLAGS
from neuropbr_dist.config.reference import COMMAND, docstrings, reference, text
from tests.support.distributed import ROOT

PAGE = ROOT / "docs" / "configuration.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference(), f"out of date; make it anew: {COMMAND}"


def test_every_field_flag_and_preset_is_on_it():
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    fields = [
        f.name for part in dataclasses.fields(TrainConfig) for f in dataclasses.fields(part.default_factory)
    ] + [f.name for f in dataclasses.fields(Stage)]
    assert len(rows) == len(fields) + len(PRESETS)
    assert all(any(row.startswith(f"| `{name}`") for row in rows) for name in [*fields, *PRESETS])
    assert all(any(f"`{flag}`" in row for row in rows) for flag in FIELD_FLAGS | INTEGER_FLAGS)


def test_every_field_has_a_docstring():
    for kind in (*(part.default_factory for part in dataclasses.fields(TrainConfig)), Stage):
        assert docstrings(kind.__name__).keys() == {f.name for f in dataclasses.fields(kind)}


def test_defaults_are_written_as_set_takes_them():
    cfg, plain = TrainConfig(), TrainConfig()
    for part in dataclasses.fields(TrainConfig):
        for field in dataclasses.fields(part.default_factory):
            default = getattr(getattr(plain, part.name), field.name)
            set_text(cfg, f"{part.name}.{field.name}={text(default)}")
    assert cfg == plain
