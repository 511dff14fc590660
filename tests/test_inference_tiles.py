"""Tiles: they cover the picture, blend without a seam, and keep normals unit."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from neuropbr_dist.errors import UserError
from neuropbr_dist.inference import load_generator, predict
from neuropbr_dist.inference.tiles import MIN_OVERLAP, check_tiling, predict_tiles, starts, window
from tests.support.trained_run import some_views, trained_run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process saves and loads

SIZES = [(512, 128, 36), (512, 128, 64), (512, 128, 112), (496, 256, 64), (272, 256, 36), (256, 256, 36)]


@pytest.mark.parametrize(("size", "tile", "overlap"), SIZES)
def test_tiles_cover_a_side_and_overlap_enough(size, tile, overlap):
    found = starts(size, tile, overlap, 16)
    assert found[0] == 0 and found[-1] == size - tile
    assert all(start % 16 == 0 for start in found)
    steps = [after - before for before, after in pairwise(found)]
    assert all(0 < step <= tile - overlap for step in steps)
    fewest = 1 + -(-(size - tile) // ((tile - overlap) // 16 * 16))
    assert len(found) == fewest


def test_ramps_of_neighbours_add_up_to_one():
    weights = window(128, 40)
    assert torch.allclose(weights[-40:] + weights[:40], torch.ones(40))
    assert (weights[40:-40] == 1).all() and (weights > 0).all()


def excess_at_edges(maps, found, tile):
    """By how much the largest step across a tile's edge exceeds both neighbouring steps; maps in [0, 1]."""
    encoded = torch.cat([maps[:5], (maps[5:] + 1) / 2])
    steps = (encoded[:, :, 1:] - encoded[:, :, :-1]).abs()
    edges = sorted({*found[1:], *(start + tile for start in found[:-1])})
    return max((steps[:, :, e - 1] - torch.maximum(steps[:, :, e - 2], steps[:, :, e])).max() for e in edges)


@pytest.mark.parametrize(("size", "tile", "overlap"), SIZES[:5])
@pytest.mark.parametrize("axis", [1, 2])
def test_no_step_at_an_edge_between_tiles_that_could_not_differ_more(size, tile, overlap, axis):
    count = 0

    def black_or_white(views):
        nonlocal count
        count += 1
        maps = torch.full((8, tile, tile), float(count % 2))
        maps[5:] = F.normalize(torch.tensor([0.6 * (-1) ** count, 0.0, 0.8]), dim=0)[:, None, None]
        return maps

    maps = predict_tiles(black_or_white, torch.zeros(3, 3, size, size, dtype=torch.uint8), tile, overlap, 16)
    maps = maps.transpose(1, 2) if axis == 1 else maps
    assert maps[0].max() - maps[0].min() > 0.5
    assert excess_at_edges(maps, starts(size, tile, overlap, 16), tile) < 1 / 255
    assert (maps[5:].norm(dim=0) - 1).abs().max() < 1e-5


def test_the_seam_check_sees_a_seam():
    maps = torch.zeros(8, 64, 512)
    maps[:, :, 128:] = 2 / 255
    assert excess_at_edges(maps, [0, 128, 256, 384], 128) > 1 / 255


def test_what_does_not_depend_on_the_tile_comes_out_unchanged():
    views = some_views(160)

    def pointwise(part):
        return torch.cat([part[:2].flatten(0, 1)[:5] / 255, F.normalize(part[2] / 255 + 0.1, dim=0)])

    assert (predict_tiles(pointwise, views, 64, 40, 16) - pointwise(views)).abs().max() < 1e-6


def smooth_views(size):
    coarse = F.interpolate(some_views(8).float(), size, mode="bicubic", align_corners=False)
    return coarse.clamp(0, 255).round().to(torch.uint8)


def test_a_trained_model_in_tiles():
    model, views = load_generator(trained_run()[0]), smooth_views(256)
    whole, tiled = predict(model, views), predict(model, views, tile=96, overlap=40)
    assert not torch.equal(whole, tiled)
    assert (whole - tiled).abs().mean() < 0.05
    assert excess_at_edges(tiled, starts(256, 96, 40, 4), 96) < 1 / 255
    assert (tiled[5:].norm(dim=0) - 1).abs().max() < 1e-5


def test_a_tile_as_large_as_the_picture_is_the_whole_picture():
    model, views = load_generator(trained_run()[0]), some_views(64)
    assert torch.equal(predict(model, views, tile=64), predict(model, views))


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (100, 40, "--tile 100; allowed: multiples of 16 px from 64 on"),
        (48, 36, "--tile 48; allowed: multiples of 16 px from 64 on"),
        (128, 35, "--overlap 35; allowed: 36 to 112 with --tile 128"),
        (128, 113, "--overlap 113; allowed: 36 to 112"),
    ],
)
def test_tiles_that_cannot_be_blended_are_refused(tile, overlap, message):
    with pytest.raises(UserError, match=message):
        check_tiling(tile, overlap, 16)
    check_tiling(128, MIN_OVERLAP, 16)
