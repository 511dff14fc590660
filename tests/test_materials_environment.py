"""Folders of pictures of surroundings: read, blurred, normalised, looked up."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.cameras import Camera
from neuropbr_dist.materials.environment import (
    HEIGHT,
    LEVELS,
    prefiltered,
    read_environments,
    read_hdr,
)
from neuropbr_dist.materials.lights import Environment, Lighting, Sky
from neuropbr_dist.materials.plane import encode
from neuropbr_dist.materials.render import render
from neuropbr_dist.materials.scene import Scene, encode_scene
from neuropbr_dist.materials.surroundings import Surroundings
from tests.support.environments import room, write_exr, write_hdr

DARK = Sky(*np.zeros((3, 3)))


def test_hdr_and_exr_hold_the_same(tmp_path):
    light = room()
    for name, runs in (("flat.hdr", False), ("runs.hdr", True)):
        write_hdr(tmp_path / name, light, runs=runs)
        np.testing.assert_allclose(read_hdr(tmp_path / name), light, rtol=1 / 100)
    write_exr(tmp_path / "same.EXR", light)
    (tmp_path / "readme.txt").touch()
    found = read_environments(tmp_path)
    assert found.shape == (3, LEVELS, 3, HEIGHT, 2 * HEIGHT + 2) and found.dtype == torch.float32
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - found[2]).abs().mean() < 0.02 * found[2].mean()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.hdr", b"not at all", "no Radiance picture"),
        ("a.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_xyze\n\n-Y 4 +X 8\n", "no Radiance picture"),
        ("a.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n+Y 4 +X 8\n" + bytes(128), "top to bottom"),
        ("a.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 64 +X 128\n" + bytes([2, 2, 0, 128, 200]), "damaged or cut"),
        ("a.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 64 +X 64\n" + bytes(64 * 64 * 4), "twice as wide"),
        ("a.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 64 +X 128\n" + bytes(64 * 128 * 4), "dark above"),
        ("a.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 100000000 +X 200000000\n" + bytes([2, 2]), "to 16384 x 8192"),
        ("a.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y " + b"9" * 5000 + b" +X 8\n", "top to bottom"),
        ("a.exr", b"not at all", "can't be read"),
        ("a.png", b"", "no .hdr or .exr"),
    ],
)  # fmt: skip
def test_odd_files_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_environments(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_huge_exr_is_refused_by_its_header(tmp_path):
    write_exr(tmp_path / "a.exr", room())
    content = (tmp_path / "a.exr").read_bytes()
    window, huge = struct.pack("<4i", 0, 0, 127, 63), struct.pack("<4i", 0, 0, 59_999, 29_999)
    assert window in content
    (tmp_path / "a.exr").write_bytes(content.replace(window, huge))
    with pytest.raises(UserError, match=r"a\.exr: (60000 x 30000 px|can't be read)"):
        read_environments(tmp_path)


@pytest.mark.parametrize("name", ["a.hdr", "a.exr"])
@pytest.mark.parametrize(
    "put",
    [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")],
    ids=["pipe", "folder", "device"],
)
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, put, name):
    put(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: (not a file|can't be read)"):
        read_environments(tmp_path)


def test_infinity_is_named(tmp_path):
    light = room()
    light[0, 0] = np.inf
    write_exr(tmp_path / "a.exr", light)
    with pytest.raises(UserError, match=r"a.exr: holds NaN or infinity"):
        read_environments(tmp_path)


def around(levels: torch.Tensor, turn: float = 0.0, strength: float = 1.0) -> Surroundings:
    placed = torch.tensor([[0.0, math.cos(turn), math.sin(turn), strength]])
    return Surroundings(levels[None], placed)


def test_uniform_light_is_the_same_at_every_roughness():
    levels = prefiltered(torch.full((3, 64, 128), 7.0))
    torch.testing.assert_close(levels[:-1], torch.ones_like(levels[:-1]), rtol=2e-3, atol=0)
    up = torch.tensor([0.0, 0, 1])[None, :, None, None]
    assert float(around(levels).irradiance(up)[0, 0]) == pytest.approx(math.pi, rel=2e-3)
    sideways = torch.tensor([1.0, 0, 0])[
        None, :, None, None
    ]  # half of what it would see is below the horizon
    assert float(around(levels).irradiance(sideways)[0, 0]) == pytest.approx(math.pi / 2, rel=0.02)


def test_looked_up_where_it_is_and_turned():
    levels = prefiltered(torch.from_numpy(room()).permute(2, 0, 1))
    at = lambda x, y, z: torch.nn.functional.normalize(torch.tensor([x, y, z])[None, :, None, None], dim=1)  # noqa: E731
    window, opposite, left = at(1.0, 0, 1.0), at(-1.0, 0, 1.0), at(0, 1.0, 1.0)
    sharp, wide = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    seen = around(levels)
    assert seen.radiance(window, sharp).mean() > 20 * seen.radiance(opposite, sharp).mean()
    assert seen.radiance(window, wide).mean() < 0.5 * seen.radiance(window, sharp).mean()
    assert seen.irradiance(window).mean() > 2 * seen.irradiance(opposite).mean()
    turned = around(levels, turn=math.pi / 2, strength=0.5)
    torch.testing.assert_close(
        turned.radiance(left, sharp), 0.5 * seen.radiance(window, sharp), rtol=0.01, atol=0
    )
    seam = torch.cat([at(-1.0, y, 0.3) for y in (-1e-3, 1e-3)], dim=-1)
    assert (seen.radiance(seam, sharp).diff(dim=-1)).abs().max() < 0.05


def test_in_a_picture():
    """White paper under surroundings of strength 1 reads its exposure; a mirror shows the window; each sample has its own."""
    uniform, window = (
        prefiltered(light) for light in (torch.ones(3, 64, 128), torch.from_numpy(room()).permute(2, 0, 1))
    )
    camera = Camera(np.array([0.0, 0.0, 1.0]), np.zeros(3))
    rows = [encode_scene(Scene((), (Lighting((), DARK, 0.8, Environment(k)),))) for k in (0, 1)]
    scenes = torch.from_numpy(np.stack(rows))
    cameras = torch.from_numpy(encode(camera.on_plane(), True))[None, None].expand(2, 1, -1)
    paper = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 1])[None, :, None, None].expand(2, 8, 8, 8)
    keys = torch.zeros(2, 1, dtype=torch.int64)
    stack = torch.stack([uniform, window])
    found = render(paper, scenes, cameras, keys, 16, stack, dirt=False)[:, 0]
    assert float(found[0].mean()) ** 2.2 == pytest.approx(0.8, abs=0.05)
    assert float(found[1].mean()) ** 2.2 == pytest.approx(0.8, abs=0.1)
    mirror = paper.clone()
    mirror[:, 3], mirror[:, 4] = 0.1, 1.0
    tilted = mirror.clone()
    tilted[:, 5:] = torch.tensor([0.383, 0.0, 0.924])[:, None, None]  # shows what is 45 degrees over +x
    shown, dim = (render(m, scenes, cameras, keys, 16, stack, dirt=False)[1].mean() for m in (tilted, mirror))
    assert shown > 1.5 * dim
