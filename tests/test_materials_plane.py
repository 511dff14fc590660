"""The plane: cameras, what is no camera, and rectified pictures against a plain reference in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from neuropbr_dist.data.augment import turn_maps, turn_views
from neuropbr_dist.materials.cameras import FIELD_OF_VIEW, Camera, builtin_cameras
from neuropbr_dist.materials.plane import (
    PlaneCamera,
    canonical,
    centre,
    encode,
    fault_of,
    pinhole,
    project,
    shifted,
)
from neuropbr_dist.materials.rectify import rectify, turn_cameras
from neuropbr_dist.materials.views import render_views

STRAIGHT = np.array([[1.0, 0.0, 0.5], [0.0, -1.0, 0.5], [0.0, 0.0, 1.0]])
"""Shows one tile, as the map does."""


def tilted(seed: int) -> PlaneCamera:
    return builtin_cameras(seed, 0)[seed % 3].on_plane()


def encoded(*cameras: PlaneCamera | None, wrap: bool, dtype=torch.float64) -> torch.Tensor:
    """(1, V, 14), in `dtype` from the camera's own numbers, not from float32."""
    rows = torch.tensor(np.stack([encode(c, wrap) for c in cameras]), dtype=dtype)
    for row, camera in zip(rows, cameras, strict=True):
        if camera is not None:
            row[:9] = torch.from_numpy(camera.map_to_view).flatten()
            if camera.eye is not None:
                row[9:12] = torch.from_numpy(camera.eye)
    return rows[None]


def reference(view: np.ndarray, camera: PlaneCamera, wrap: bool, side: int) -> np.ndarray:
    """One pixel after the other: (C + 4, side, side)."""
    channels, h, w = view.shape
    out = np.zeros((channels + 4, side, side))
    cx, cy = centre(camera.map_to_view)
    for i in range(side):
        for j in range(side):
            x, y = (j + 0.5) / side - 0.5, 0.5 - (i + 0.5) / side
            if wrap:
                x, y = (c + (p - c + 0.5 - math.floor(p - c + 0.5)) - 0.5 for p, c in ((x, cx), (y, cy)))
            big_u, big_v, factor = camera.map_to_view @ [x, y, 1]
            u, v = big_u / factor, big_v / factor
            if factor <= 0 or not (0 <= u <= 1 and 0 <= v <= 1):
                continue
            column, row = u * w - 0.5, v * h - 0.5
            left, top = math.floor(column), math.floor(row)
            fx, fy = column - left, row - top
            for dx, dy, share in (
                (0, 0, (1 - fx) * (1 - fy)),
                (1, 0, fx * (1 - fy)),
                (0, 1, (1 - fx) * fy),
                (1, 1, fx * fy),
            ):
                pixel = view[:, min(max(top + dy, 0), h - 1), min(max(left + dx, 0), w - 1)]
                out[:channels, i, j] += share * pixel
            out[channels, i, j] = 1
            if camera.eye is not None:
                to_eye = camera.eye - [x, y, 0]
                out[channels + 1 :, i, j] = to_eye / np.linalg.norm(to_eye)
    return out


@pytest.mark.parametrize("wrap", [True, False])
def test_rectified_as_the_reference_says(wrap):
    rng = np.random.default_rng(0)
    cameras = [tilted(0), shifted(tilted(1), (3, -2)), replace(tilted(2), eye=None)]
    views = rng.random((3, 3, 20, 24))
    found = rectify(torch.from_numpy(views)[None], encoded(*cameras, wrap=wrap), 16)
    expected = np.stack([reference(*pair, wrap, 16) for pair in zip(views, cameras, strict=True)])
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-12)
    share = found[0, :, 3].mean((1, 2)).tolist()
    assert all(s > 0.5 for s in share[: 3 if wrap else 1]) and (wrap or share[1] == 0)
    assert found[0, 2, 4:].abs().max() == 0 and found[0, 0, 4:].norm(dim=0).max() == pytest.approx(1)


def test_float32_is_near_enough():
    """A coordinate's error stays below a thousandth of a pixel at 2048 px."""
    side = 2048
    grid = torch.stack(torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="xy"))[None, None]
    cameras = encoded(tilted(4), wrap=False)
    rows = (700, 708)
    wide = rectify(grid.double(), cameras, side, rows)
    short = rectify(grid.float(), cameras.float(), side, rows)
    both = (wide[:, :, 2] * short[:, :, 2])[:, :, None]
    assert both.mean() > 0.9
    assert ((wide - short) * both)[:, :, :2].abs().max() * side < 1e-3


def test_rows_alone_are_the_same():
    views, cameras = torch.rand(1, 2, 3, 16, 16), encoded(tilted(0), tilted(1), wrap=True).float()
    whole = rectify(views, cameras, 16)
    assert torch.equal(rectify(views, cameras, 16, (5, 9)), whole[..., 5:9, :])


def test_a_view_that_is_not_known_is_zeros():
    views = torch.rand(1, 3, 3, 16, 16)
    found = rectify(views, encoded(tilted(0), None, tilted(1), wrap=True).float(), 16)
    assert found[0, 1].abs().max() == 0 and found[0, 0, 3].mean() > 0.9 and found.isfinite().all()


def test_where_the_plane_repeats_whole_tiles_do_not_matter():
    views = torch.rand(1, 1, 3, 16, 16, dtype=torch.float64)
    here, there = (encoded(c, wrap=True) for c in (tilted(3), shifted(tilted(3), (2, -1))))
    torch.testing.assert_close(rectify(views, here, 16), rectify(views, there, 16), atol=1e-12, rtol=0)
    back = canonical(shifted(tilted(3), (2, -1)))
    np.testing.assert_allclose(back.map_to_view, tilted(3).map_to_view, atol=1e-12)
    np.testing.assert_allclose(back.eye, tilted(3).eye, atol=1e-12)
    assert (centre(back.map_to_view) >= -0.5).all() and (centre(back.map_to_view) < 0.5).all()


@pytest.mark.parametrize("orientation", range(8))
@pytest.mark.parametrize("wrap", [True, False])
def test_rectifying_the_turned_is_turning_the_rectified(orientation, wrap):
    """Picture, mask and direction: a direction turns as a normal does."""
    generator = torch.Generator().manual_seed(orientation)
    views = torch.rand(1, 3, 3, 16, 16, generator=generator, dtype=torch.float64)
    cameras = encoded(tilted(0), tilted(1), replace(tilted(2), eye=None), wrap=wrap)
    found = rectify(turn_views(views, orientation), turn_cameras(cameras, orientation), 16)
    expected = turn_views(rectify(views, cameras, 16), orientation).clone()
    x, y = expected[:, :, 4].clone(), expected[:, :, 5].clone()
    if orientation >= 4:
        x = -x
    for _ in range(orientation % 4):
        x, y = -y, x
    expected[:, :, 4], expected[:, :, 5] = x, y
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert expected[:, :, 3].mean() > 0.5


@pytest.mark.parametrize("orientation", range(8))
def test_directions_turn_as_normals_do(orientation):
    normals = torch.randint(0, 256, (8, 4, 4), dtype=torch.uint8)
    direction = normals[5:].double() * 2 - 255
    turned = turn_maps(normals, orientation)[5:].double() * 2 - 255
    eye = torch.zeros(16, 14, dtype=torch.float64)
    eye[:, 9:12] = direction.flatten(1).T
    found = turn_cameras(eye, orientation)[:, 9:12].T.view(3, 4, 4)
    torch.testing.assert_close(turn_views(found, orientation), turned)


def test_a_finer_picture_is_filtered_by_area():
    """Stripes finer than the map come out grey, not as moiré; a picture of the map's fineness stays sharp."""
    stripes = (torch.arange(256) // 2 % 2).float().expand(1, 1, 1, 256, 256).clone()
    cameras = encoded(PlaneCamera(STRAIGHT), wrap=True).float()
    grey = rectify(stripes, cameras, 64)[0, 0, 0]
    assert (grey - 0.5).abs().max() < 1e-5
    near = encoded(
        PlaneCamera(np.diag([4, 4, 1.0]) @ STRAIGHT - [[0, 0, 1.5], [0, 0, 1.5], [0, 0, 0]]), wrap=False
    )
    close = rectify(stripes, near.float(), 64)[
        0, 0
    ]  # a quarter of the tile fills the picture: 16 pixels a texel
    assert (close[0] - 0.5 * close[1]).abs().max() < 1e-5 and close[1].mean() == 1 / 16
    same = rectify(torch.rand(1, 1, 3, 64, 64), cameras, 64)
    assert torch.equal(same[0, 0, 3], torch.ones(64, 64)) and same[0, 0, :3].std() > 0.25


def test_pinhole_projects_as_its_rays_go():
    camera = Camera(np.array([0.3, -0.4, 1.1]), np.array([0.05, -0.1, 0.0]), roll=0.2)
    u, v = np.random.default_rng(1).random((2, 50))
    right, up, forward = (axis[:, None] for axis in camera.axes())
    half = np.tan(FIELD_OF_VIEW / 2)
    rays = forward + right * half * (2 * u - 1) + up * half * (1 - 2 * v)
    points = camera.position[:, None] - rays * (camera.position[2] / rays[2])
    seen = camera.on_plane()
    np.testing.assert_allclose(project(seen.map_to_view, points[:2].T), np.stack([u, v], 1), atol=1e-6)
    np.testing.assert_allclose(centre(seen.map_to_view), camera.target[:2], atol=1e-12)
    wide = pinhole(camera.position, camera.axes(), FIELD_OF_VIEW, aspect=2.0)
    np.testing.assert_allclose(
        (project(wide.map_to_view, points[:2].T) - 0.5) @ np.diag([1, 0.5]),
        np.stack([u, v], 1) - 0.5,
        atol=1e-6,
    )


def test_what_is_behind_the_camera_is_nowhere():
    up = pinhole(
        np.array([0, 0, 1.0]), np.array([[1, 0, 0], [0, 0.6, 0.8], [0, 0.8, -0.6]]), math.radians(90)
    )
    assert np.isfinite(project(up.map_to_view, np.array([0.0, 0.4]))).all()
    assert np.isnan(project(up.map_to_view, np.array([0.0, -9.0]))).all()
    found = rectify(torch.ones(1, 1, 1, 8, 8), encoded(shifted(up, (0, 9)), wrap=False).float(), 8)
    assert found.abs().max() == 0


def test_rectified_views_lie_on_the_map():
    """Pictures of a flat and matt material with spots: rectified, the spots are where the albedo has them."""
    side, rng = 64, np.random.default_rng(0)
    spots = torch.nn.functional.pad(
        torch.from_numpy(rng.random((1, 1, 16, 16))), (1, 1, 1, 1), mode="circular"
    )
    spots = torch.nn.functional.interpolate(spots, scale_factor=4, mode="bicubic")[0, 0, 4:-4, 4:-4]
    maps = np.empty((8, side, side), np.uint8)
    maps[:3], maps[3:] = (spots.clamp(0, 1) * 200).numpy(), np.array([255, 0, 128, 128, 255])[:, None, None]
    for index in range(3):
        views = torch.from_numpy(render_views(maps, 5, index, dirty=False)).double() / 255
        rows = np.stack([encode(camera.on_plane(), True) for camera in builtin_cameras(5, index)])
        seen = rectify(views[None], torch.from_numpy(rows)[None], side)[0]
        assert min(correlation(view[0], spots, view[3]) for view in seen) > 0.97
        assert max(correlation(view[0], spots, torch.ones_like(spots)) for view in views) < 0.7


def correlation(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a[mask > 0], b[mask > 0]]))[0, 1].item()


GOOD = PlaneCamera(STRAIGHT, np.array([0.1, 0.2, 1.2]), 0.9)


@pytest.mark.parametrize(
    ("camera", "fault"),
    [
        (GOOD, None),
        (replace(GOOD, eye=None, confidence=0.0), None),
        (replace(GOOD, map_to_view=STRAIGHT * 1e30), None),
        (replace(GOOD, map_to_view=STRAIGHT * np.nan), "finite"),
        (replace(GOOD, map_to_view=np.full((3, 3), np.inf)), "finite"),
        (replace(GOOD, eye=np.array([0, 0, np.inf])), "finite"),
        (replace(GOOD, eye=np.array([0, 0, -1.0])), "below the surface"),
        (replace(GOOD, confidence=1.5), "confidence is 1.5"),
        (replace(GOOD, confidence=math.nan), "confidence is nan"),
        (replace(GOOD, map_to_view=-STRAIGHT), "behind the camera"),
        (replace(GOOD, map_to_view=np.zeros((3, 3))), "inverted"),
        (replace(GOOD, map_to_view=np.ones((3, 3))), "inverted"),
        (replace(GOOD, map_to_view=np.diag([1e-6, 1e-6, 1]) @ STRAIGHT), "inverted"),
        (replace(GOOD, map_to_view=STRAIGHT * [[1], [-1], [1]] + [[0, 0, 0], [0, 0, 1], [0, 0, 0]]), "mirrors"),
    ],
)  # fmt: skip
def test_what_is_no_camera(camera, fault):
    found = fault_of(camera)
    assert (found is None) if fault is None else (found is not None and fault in found), found


def test_true_cameras_have_no_fault():
    assert [fault_of(c.on_plane()) for i in range(30) for c in builtin_cameras(3, i)] == [None] * 90
