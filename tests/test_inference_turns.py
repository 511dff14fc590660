"""The mean over orientations: maps come back as they were turned, and a turned material gets turned maps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from neuropbr_dist.commands.infer import run as infer
from neuropbr_dist.config import load, with_fields
from neuropbr_dist.data.augment import turn_maps, turn_views
from neuropbr_dist.data.builtin.cache import sample_cameras
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference import InferenceGenerator, predict
from neuropbr_dist.inference.turns import ORDER, orientations, turned_back
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.materials.rectify import turn_cameras
from tests.support.on_gpus import exact_convolutions
from tests.support.train_runs import SINGLE_PROCESS_SAVES, whole_run

SIDE = 32


def generator(align: str, *, flips: bool = True, rotations: bool = True) -> InferenceGenerator:
    torch.manual_seed(0)
    cfg = with_fields(
        load("demo"),
        data={"augment_flips": flips, "augment_rotations": rotations},
        model={"encoder_channels": [8, 16, 16], "align": align},
    )
    return InferenceGenerator(cfg, Path("x"), 0).eval()


def sample() -> tuple[Tensor, Tensor]:
    """Views (3, 3, S, S) uint8, and cameras (3, 14) that see the plane from different places."""
    drawn = torch.Generator().manual_seed(1)
    views = torch.randint(256, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=drawn)
    return views, torch.from_numpy(sample_cameras(0, 3).encoded("clean"))


@pytest.mark.parametrize("orientation", range(8))
def test_maps_come_back_as_they_were_turned(orientation):
    maps = torch.randint(256, (8, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    turned = decode_maps(turn_maps(maps, orientation)[None])
    torch.testing.assert_close(turned_back(turned, orientation), decode_maps(maps[None]))


@pytest.mark.parametrize("align", ["plane", "none"])
def test_a_turned_material_gets_the_turned_maps(align):
    """Over all orientations the mean knows none: more than that of any one network's."""
    net, (views, cameras) = generator(align), sample()

    def maps(orientation: int, turns: int) -> Tensor:
        turned = turn_cameras(cameras, orientation) if net.on_plane else None
        return turned_back(predict(net, turn_views(views, orientation), turned, turns=turns), orientation)

    wanted = maps(0, 8)
    torch.testing.assert_close(wanted[5:].norm(dim=0), torch.ones(SIDE, SIDE))
    for orientation in (1, 4, 6):
        torch.testing.assert_close(maps(orientation, 8), wanted, atol=2e-5, rtol=0)
        assert (maps(orientation, 1) - maps(0, 1)).abs().max() > 1e-3


def test_tiles_and_batches_are_turned_too():
    net, (views, cameras) = generator("plane"), sample()
    one = predict(net, views, cameras, turns=4)
    both = predict(net, views.expand(2, -1, -1, -1, -1), cameras.expand(2, -1, -1), turns=4)
    torch.testing.assert_close(both, one.expand(2, -1, -1, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(predict(net, views, cameras, turns=4, tile=40, overlap=36), one)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_outputs_are_those_of_the_cpu():
    net, (views, cameras) = generator("plane"), sample()
    on_cpu = predict(net, views, cameras, turns=8)
    with exact_convolutions():
        on_gpu = predict(net.cuda(), views, cameras, precision="fp32", turns=8)
    assert (on_gpu - on_cpu).abs().max() < 1e-4


def test_only_orientations_that_a_run_was_trained_in_are_taken():
    assert orientations(generator("none").config, 8) == list(ORDER)
    assert orientations(generator("none", flips=False).config, 3) == [0, 2, 1]
    assert set(orientations(generator("none", rotations=False).config, 4)) == {0, 2, 4, 6}
    with pytest.raises(UserError, match=r"--turns 2; allowed: 1 to 1, .* augment_rotations = False\)"):
        orientations(generator("none", flips=False, rotations=False).config, 2)
    with pytest.raises(UserError, match="--turns 0; allowed: 1 to 8"):
        orientations(generator("none").config, 0)


@SINGLE_PROCESS_SAVES
@pytest.mark.multiprocess
def test_the_flag_arrives(tmp_path):
    words = ["--checkpoint", str(whole_run()), "--out-dir", str(tmp_path), "--device", "cpu", "--debug"]
    with pytest.raises(UserError, match="--turns 9; allowed: 1 to "):
        infer([*words, "--turns", "9"])
    assert not list(tmp_path.iterdir())
