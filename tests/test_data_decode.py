"""PNG files -> uint8 arrays, each kind against its values."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from neuropbr_dist.data.files.decode import read_maps, read_picture, read_views
from neuropbr_dist.data.files.layout import scan
from neuropbr_dist.errors import UserError
from tests.support.material_files import png, write_set

SIDE = 19
"""Odd, so that rows of 1-, 2- and 4-bit values end inside a byte."""


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "picture.png"


def values(rng, channels, depth):
    return rng.integers(0, 2**depth, (SIDE, SIDE, channels))


def chw(pixels):
    """(H, W, 1 or 3) -> uint8 (3, H, W), gray replicated."""
    return np.broadcast_to(pixels, (SIDE, SIDE, 3)).transpose(2, 0, 1).astype(np.uint8)


def to_8_bit(pixels, depth):
    return np.rint(pixels * 255 / (2**depth - 1))


def test_sample_contract(tmp_path):
    (sample,) = scan(*write_set(tmp_path, {"a": "wood"}, size=SIDE))
    views, maps = read_views(sample), read_maps(sample)
    assert (views.shape, views.dtype) == ((3, 3, SIDE, SIDE), np.uint8)
    assert (maps.shape, maps.dtype) == ((8, SIDE, SIDE), np.uint8)
    assert views.flags.c_contiguous and maps.flags.c_contiguous
    for view, file in zip(views, sample.views, strict=True):
        np.testing.assert_array_equal(view.transpose(1, 2, 0), np.asarray(Image.open(file)))
    for channels, file in zip((slice(0, 3), 3, 4, slice(5, 8)), sample.maps, strict=True):
        expected = np.asarray(Image.open(file))
        np.testing.assert_array_equal(
            maps[channels], np.moveaxis(expected, -1, 0) if expected.ndim == 3 else expected
        )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour_type", "channels", "depth"),
    [(0, 1, 1), (0, 1, 2), (0, 1, 4), (0, 1, 8), (0, 1, 16), (2, 3, 8), (2, 3, 16)],
)
def test_gray_and_rgb_of_every_depth(path, rng, colour_type, channels, depth, interlaced):
    pixels = values(rng, channels, depth)
    path.write_bytes(png(pixels, colour_type, depth, interlaced=interlaced))
    np.testing.assert_array_equal(read_picture(path, "view"), chw(to_8_bit(pixels, depth)))


def test_every_16_bit_value_is_rounded(path):
    pixels = np.arange(65536).reshape(256, 256, 1)
    expected = np.rint(pixels / 257)[None, ..., 0]
    for colour_type, channels in ((0, 1), (2, 3)):
        path.write_bytes(png(np.repeat(pixels, channels, axis=2), colour_type, 16))
        np.testing.assert_array_equal(read_picture(path, "roughness"), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_are_expanded(path, rng, depth):
    palette, pixels = rng.integers(0, 256, (2**depth, 3)), values(rng, 1, depth)
    path.write_bytes(png(pixels, 3, depth, palette=palette))
    np.testing.assert_array_equal(read_picture(path, "view"), chw(palette[pixels[..., 0]]))


@pytest.mark.parametrize(("colour_type", "channels", "depth"), [(4, 2, 8), (6, 4, 8), (6, 4, 16)])
def test_alpha_is_dropped_where_opaque_and_refused_elsewhere(path, rng, colour_type, channels, depth):
    pixels = values(rng, channels, depth)
    pixels[..., -1] = 2**depth - 1
    path.write_bytes(png(pixels, colour_type, depth))
    np.testing.assert_array_equal(read_picture(path, "view"), chw(to_8_bit(pixels[..., :-1], depth)))
    pixels[3, 4, -1] = 2 ** (depth - 1)
    path.write_bytes(png(pixels, colour_type, depth))
    with pytest.raises(UserError, match=r"picture\.png: has transparent pixels"):
        read_picture(path, "view")


def test_transparent_colours(path, rng):
    palette, pixels = rng.integers(0, 256, (4, 3)), values(rng, 1, 2)
    path.write_bytes(png(pixels, 3, 2, palette=palette, transparency=b"\xff\xff"))
    np.testing.assert_array_equal(read_picture(path, "view"), chw(palette[pixels[..., 0]]))
    path.write_bytes(png(pixels, 3, 2, palette=palette, transparency=b"\xff\x10"))
    with pytest.raises(UserError, match="transparent pixels"):
        read_picture(path, "view")
    path.write_bytes(png(values(rng, 3, 16), 2, 16, transparency=b"\0" * 6))
    with pytest.raises(UserError, match="16-bit with a transparent colour"):
        read_picture(path, "view")
    path.write_bytes(png(values(rng, 2, 16), 4, 16))
    with pytest.raises(UserError, match="16-bit gray with alpha"):
        read_picture(path, "view")


def test_roles(path, rng):
    gray = values(rng, 1, 8)
    path.write_bytes(png(gray, 0, 8))
    np.testing.assert_array_equal(read_picture(path, "albedo"), chw(gray))
    np.testing.assert_array_equal(read_picture(path, "metallic"), chw(gray)[:1])
    with pytest.raises(UserError, match="a normal map has X, Y and Z"):
        read_picture(path, "normal")

    equal = np.repeat(gray, 3, axis=2)
    path.write_bytes(png(equal, 2, 8))
    np.testing.assert_array_equal(read_picture(path, "roughness"), chw(gray)[:1])
    equal[5, 6, 2] ^= 1
    path.write_bytes(png(equal, 2, 8))
    with pytest.raises(UserError, match="a roughness map has one value a pixel"):
        read_picture(path, "roughness")
    np.testing.assert_array_equal(read_picture(path, "normal"), chw(equal))


def test_no_damaged_file_becomes_data(path, rng):
    """Every cut, and every flipped byte, is an error that names the file, or changes no pixel."""
    pixels = values(rng, 3, 8)
    data = png(pixels, 2, 8)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"picture\.png: "):
            read_picture(path, "view")
    refused = 0
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x41
        path.write_bytes(damaged)
        try:
            picture = read_picture(path, "view")
        except UserError as error:
            assert "picture.png: " in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(picture, chw(pixels))
    assert refused > 0.95 * len(data)  # the rest are checksums of intact pixels


def test_what_is_no_picture(tmp_path, path):
    with pytest.raises(UserError, match="no such file"):
        read_picture(path, "view")
    with pytest.raises(UserError, match="directory"):
        read_picture(tmp_path, "view")
    Image.new("RGB", (8, 8)).save(path, "JPEG")
    with pytest.raises(UserError, match="not a PNG file"):
        read_picture(path, "view")
    Image.new("RGB", (8, 6)).save(path)
    with pytest.raises(UserError, match="8 x 6; pictures must be square"):
        read_picture(path, "view", 8)


def test_resize_averages(path, rng):
    pixels = rng.integers(0, 256, (64, 64, 3))
    path.write_bytes(png(pixels, 2, 8))
    small = read_picture(path, "view", 16)
    # Antialiased: a triangle filter of twice the scale, weights summed over the 64 pixels.
    distance = np.abs((np.arange(64) + 0.5) / 4 - (np.arange(16)[:, None] + 0.5))
    weights = np.clip(1 - distance, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.einsum("iy,jx,yxc->cij", weights, weights, pixels)
    assert small.dtype == np.uint8
    assert np.abs(small - expected).max() <= 1
    assert read_picture(path, "view", 100).shape == (3, 100, 100)
    np.testing.assert_array_equal(read_picture(path, "view", 64), pixels.transpose(2, 0, 1))


def test_sizes_within_a_sample(tmp_path):
    (sample,) = scan(*write_set(tmp_path, {"a": "wood"}, size=8))
    Image.new("RGB", (4, 4)).save(sample.views[2])
    Image.new("L", (4, 4)).save(sample.maps[1])
    with pytest.raises(UserError, match=r"2\.png: 4 x 4, but .*0\.png is 8 x 8; set data\.image_size"):
        read_views(sample)
    with pytest.raises(UserError, match=r"roughness\.png: 4 x 4, but .*albedo\.png is 8 x 8"):
        read_maps(sample)
    assert read_views(sample, 8).shape == (3, 3, 8, 8)
    assert read_maps(sample, 6).shape == (8, 6, 6)


@pytest.mark.parametrize("interlaced", [False, True])
def test_missing_rows_are_damage(path, rng, interlaced):
    """In a stream that is whole: every checksum fits."""
    data = png(rng.integers(0, 256, (64, 64, 3), np.uint8), 2, 8, interlaced=interlaced)
    at, size = data.index(b"IDAT"), struct.unpack_from(">I", data, data.index(b"IDAT") - 4)[0]
    rows = zlib.decompress(data[at + 4 : at + 4 + size])
    for kept in (193, len(rows) - 1):
        content = b"IDAT" + zlib.compress(rows[:kept])
        chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
        path.write_bytes(data[: at - 4] + chunk + data[at + 8 + size :])
        with pytest.raises(UserError, match=rf"damaged \({kept} of {len(rows)} bytes of pixels\)"):
            read_picture(path, "view")
