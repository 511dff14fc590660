"""A set at another side is what it would be had it been opened there; a side that it serves badly is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neuropbr_dist.config import DataConfig, TrainConfig, with_fields
from neuropbr_dist.data.open import open_samples
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.sides import side_advice
from tests.support.material_files import write_set


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Configurations of files, a packed set and built-ins, stored and rendered."""
    folder = tmp_path_factory.mktemp("sets")
    renders, maps = write_set(folder, {f"sample_{i:04d}": f"material_{i}" for i in range(3)}, size=64)
    pack(renders, maps, folder / "packed")
    builtin = {"builtin": True, "builtin_count": 2, "builtin_cache": str(folder / "cache")}
    return {
        "files": {"input_dir": str(renders), "output_dir": str(maps)},
        "packed": {"packed_dir": str(folder / "packed")},
        "materials": {"materials_dir": str(maps), "renders_per_epoch": 2},
        "packed materials": {"materials_dir": str(folder / "packed"), "renders_per_epoch": 2},
        "builtin": builtin,
        "rendered": {**builtin, "render": "online", "renders_per_epoch": 2},
    }


def opened(tmp_path, data, side):
    cfg = with_fields(TrainConfig(), training={"checkpoint_dir": str(tmp_path)})
    return open_samples(replace(cfg, data=DataConfig(**data, image_size=side)))


@pytest.mark.parametrize("name", ["files", "packed", "materials", "packed materials", "builtin", "rendered"])
def test_at_another_side_it_is_as_if_opened_there(tmp_path, sets, name):
    one, other = opened(tmp_path, sets[name], 32), opened(tmp_path, sets[name], 16)
    moved = one.at(16)
    assert moved.fingerprint == other.fingerprint and moved.data == other.data
    assert one.source.size == 32 and one.at(32) is one
    for entry, same in zip(moved.train, other.train, strict=True):
        for mine, theirs in zip(moved.source.load(entry), other.source.load(same), strict=True):
            assert mine.shape[-1] == 16
            np.testing.assert_array_equal(mine, theirs)


def test_what_to_pack_is_said(tmp_path, sets):
    said = {
        (name, side): side_advice(opened(tmp_path, data, 32).source, side)
        for name, data in sets.items()
        for side in (16, 32, 64, 128)
    }
    assert {key for key, advice in said.items() if advice is None} == {
        *((name, 64) for name in sets), *(("builtin", side) for side in (16, 32, 128)),
        *(("rendered", side) for side in (16, 32, 128)), ("files", 32), ("materials", 32),
    }  # fmt: skip
    assert "128 px, but the set's pictures have 64: they are enlarged" in said["files", 128]
    assert (
        "16 px, but the files have 64" in said["materials", 16] and "launch/data.py pack" in said["files", 16]
    )
    assert "none of the packed set's levels (64)" in said["packed", 16]
