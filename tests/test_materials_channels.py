"""How bytes hold maps: said once, with the same bits from numpy and torch."""

import subprocess
import sys

import numpy as np
import torch

from neuropbr_dist.materials.channels import (
    ALBEDO,
    MAP_NAMES,
    MAP_SLICES,
    NORMAL,
    as_stored,
    decode,
    decode_normals,
    encode_normals,
    linear_to_srgb,
    quantise,
    srgb_to_linear,
)
from neuropbr_dist.materials.decoding import decode_maps, linear_maps
from neuropbr_dist.monitor.pictures import maps_to_bytes
from tests.support.distributed import ROOT

LEVELS = np.arange(256, dtype=np.uint8)
MAPS = np.random.default_rng(0).integers(0, 256, (8, 32, 32), np.uint8)


def test_the_channels_are_eight_without_gap_or_overlap():
    assert tuple(MAP_SLICES) == MAP_NAMES
    assert [i for part in MAP_SLICES.values() for i in range(8)[part]] == list(range(8))


def test_levels_decode_to_the_same_bits_in_numpy_and_torch():
    for dtype in ("float32", "float64"):
        in_numpy = decode(LEVELS.astype(dtype))
        in_torch = decode(torch.from_numpy(LEVELS).to(getattr(torch, dtype)))
        assert in_numpy.tobytes() == in_torch.numpy().tobytes()
        assert decode_normals(in_numpy).tobytes() == decode_normals(in_torch).numpy().tobytes()
        assert (in_numpy[0], in_numpy[255]) == (0, 1) and in_numpy.dtype == dtype


def test_what_is_decoded_is_stored_as_it_was():
    levels = LEVELS.astype(np.float32)
    assert (quantise(encode_normals(decode_normals(decode(levels)))) == LEVELS).all()
    assert (quantise(linear_to_srgb(srgb_to_linear(decode(levels)))) == LEVELS).all()
    maps = decode(torch.from_numpy(MAPS).float())
    maps[NORMAL] = decode_normals(maps[NORMAL])
    before = maps.clone()
    assert torch.equal(maps_to_bytes(maps), torch.from_numpy(MAPS)) and torch.equal(maps, before)
    assert torch.equal(as_stored(maps[None])[0], as_stored(maps))


def test_shading_and_networks_see_the_same_maps():
    seen = decode_maps(torch.from_numpy(MAPS)[None])[0].numpy()
    shaded = linear_maps(torch.from_numpy(seen)).numpy()
    np.testing.assert_array_equal(shaded[3:5], seen[3:5])
    np.testing.assert_allclose(shaded[ALBEDO], srgb_to_linear(seen[ALBEDO]), rtol=1e-6)
    np.testing.assert_array_equal(shaded[NORMAL], seen[NORMAL])


def test_a_working_process_that_reads_or_decodes_does_without_torch():
    """Torch is 2 s and 600 MB in each of them."""
    modules = ("data.builtin.cache", "data.builtin.generate", "data.files.verify", "data.packed.pack")
    code = (
        f"import sys, {', '.join(f'neuropbr_dist.{name}' for name in modules)}; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
