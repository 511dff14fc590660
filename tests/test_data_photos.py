"""Photos: how they are read, how homographies become a tilt, the square that all show, and what is left out."""

from __future__ import annotations

import io
import logging
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from neuropbr_dist.data.photos import read as read_module
from neuropbr_dist.data.photos.align import align
from neuropbr_dist.data.photos.aligned import as_they_are
from neuropbr_dist.data.photos.frame import largest_square
from neuropbr_dist.data.photos.pairs import UPRIGHT, PhotoPyramid
from neuropbr_dist.data.photos.read import Photo, read_photo
from neuropbr_dist.data.photos.rectified import rectified, stretched
from neuropbr_dist.data.photos.settle import settled
from neuropbr_dist.data.photos.tilt import Link, lay_out
from neuropbr_dist.data.register.fit import refined
from neuropbr_dist.data.register.motion import Plane
from neuropbr_dist.data.register.pyramid import ViewPyramid
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.plane import project
from neuropbr_dist.materials.scene import builtin_scene
from tests.support.phone import (
    FOCAL_35MM,
    ball,
    boxes,
    judge,
    pictures_of_relief,
    save_photo,
    true_cameras,
)

STONE = (7, 8)  # seed and index


def corners(width: int = 96, height: int = 128) -> np.ndarray:
    """A picture whose corners are red, green, blue and white, from the top left on by rows."""
    picture = np.full((height, width, 3), 90, np.uint8)
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))
    for k, colour in enumerate(colours):
        down, across = divmod(k, 2)
        picture[down * height // 2 :, across * width // 2 :] = colour
    return picture


# -- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".heic"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photos_are_turned_upright(tmp_path, suffix, orientation):
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    save_photo(tmp_path / f"a{suffix}", corners(), orientation)
    photo = read_photo(tmp_path / f"a{suffix}")
    assert photo.pixels.shape == (3, 128, 96)
    assert np.abs(photo.pixels.transpose(1, 2, 0).astype(int) - corners())[8::16, 8::16].max() < 12
    assert photo.focal_told
    assert photo.focal == pytest.approx(FOCAL_35MM / np.hypot(36, 24) * np.hypot(96, 128))


def test_a_photo_without_a_focal_length_gets_a_phones(tmp_path):
    save_photo(tmp_path / "a.jpg", corners(), focal_35mm=None)
    photo = read_photo(tmp_path / "a.jpg")
    assert not photo.focal_told and photo.focal == pytest.approx(26 / np.hypot(36, 24) * 160)


def test_a_lenss_own_length_and_its_sensor_tell_the_same(tmp_path):
    exif = Image.Exif()
    # FocalLength in mm, FocalPlaneXResolution in px a unit, FocalPlaneResolutionUnit: mm.
    exif.get_ifd(0x8769).update({0x920A: 5.7, 0xA20E: 20.0, 0xA210: 4})
    Image.fromarray(corners()).save(tmp_path / "a.jpg", exif=exif)
    assert read_photo(tmp_path / "a.jpg").focal == pytest.approx(5.7 * 20)


@pytest.mark.parametrize("told", [0, 65535])
def test_nonsense_in_exif_counts_as_nothing(tmp_path, told):
    save_photo(tmp_path / "a.jpg", corners(), focal_35mm=told)
    assert not read_photo(tmp_path / "a.jpg").focal_told


def profile(red: tuple[float, float]) -> bytes:
    """An ICC profile of sRGB's curve and blue and green, and another red."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1.0, (1 - x - y) / y])

    white, d50 = xyz(0.3127, 0.3290), np.array([0.96422, 1.0, 0.82521])
    primaries = np.stack([xyz(*red), xyz(0.265, 0.690), xyz(0.150, 0.060)], 1)
    matrix = primaries * np.linalg.solve(primaries, white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    matrix = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ white)) @ bradford @ matrix

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    curve = b"para\0\0\0\0\0\3\0\0" + b"".join(
        map(number, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
    )
    tags = {b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(number, d50))}
    for k, name in enumerate((b"r", b"g", b"b")):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + b"".join(map(number, matrix[:, k]))
        tags[name + b"TRC"] = curve
    text = b"Display P3\0"
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(79)
    body, table, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ") + bytes(
        12
    )
    head += b"acsp" + bytes(28) + b"".join(map(number, d50)) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def test_display_p3_becomes_srgb(tmp_path):
    data = profile((0.680, 0.320))
    assert "Display P3" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(data)))
    picture = Image.new("RGB", (96, 128), (200, 80, 60))
    for name in ("a.png", "a.jpg"):
        picture.save(tmp_path / name, icc_profile=data, **({"quality": 100} if name == "a.jpg" else {}))
        mean = read_photo(tmp_path / name).pixels.reshape(3, -1).mean(1)
        assert np.abs(mean - p3_in_srgb(200, 80, 60)).max() < 2


def p3_in_srgb(*levels: int) -> np.ndarray:
    """Display P3's levels as sRGB's, by their primaries (SMPTE RP 431-2, IEC 61966-2-1): white and curve are the same."""

    def to_xyz(primaries: list[tuple[float, float]]) -> np.ndarray:
        columns = np.stack([np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in primaries], 1)
        return columns * np.linalg.solve(columns, [0.3127 / 0.3290, 1.0, 0.3583 / 0.3290])

    share = np.array(levels) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    p3, srgb = ([red, green, (0.150, 0.060)] for red, green in (
        ((0.680, 0.320), (0.265, 0.690)), ((0.640, 0.330), (0.300, 0.600))
    ))  # fmt: skip
    linear = np.linalg.solve(to_xyz(srgb), to_xyz(p3) @ linear).clip(0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def test_a_broken_profile_is_told(tmp_path, caplog):
    Image.fromarray(corners()).save(tmp_path / "a.png", icc_profile=b"nonsense" * 40)
    with caplog.at_level(logging.WARNING, "neuropbr_dist"):
        assert (read_photo(tmp_path / "a.png").pixels.transpose(1, 2, 0) == corners()).all()
    assert "a.png: its colour profile can't be used" in caplog.text


def test_large_photos_are_reduced(tmp_path, monkeypatch):
    monkeypatch.setattr(read_module, "LARGEST_SIDE", 64)
    for name in ("a.jpg", "a.png"):
        save_photo(tmp_path / name, corners(), 6)
        photo = read_photo(tmp_path / name)
        assert photo.pixels.shape == (3, 64, 48)
        assert photo.focal == pytest.approx(26 / np.hypot(36, 24) * 80)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "not a PNG, JPEG or HEIC file"),
        (b"", "not a PNG"),
        ("half", "damaged or not readable"),
    ],
)
def test_what_is_no_photo_is_named(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    if content == "half":
        save_photo(path, np.random.default_rng(0).integers(0, 255, (256, 192, 3), np.uint8))
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.jpg: {message}"):
        read_photo(path)


def test_heic_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(read_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'neuropbr_dist\[photos\]'; or save it as JPEG"):
        read_photo(tmp_path / "a.heic")


# -- geometry ----------------------------------------------------------------------------------


def turn(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [k for k in range(3) if k != axis]
    matrix = np.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


def cameras() -> list[tuple[np.ndarray, np.ndarray]]:
    """Turns and places over the plane z = 1, which the first camera sees at 18 degrees."""
    aims = [turn(18, 0), turn(-12, 0) @ turn(21, 1) @ turn(7, 2), turn(-25, 1) @ turn(5, 0) @ turn(-11, 2)]
    places = [np.zeros(3), np.array([-0.4, 0.35, 0.1]), np.array([0.45, 0.2, -0.15])]
    return list(zip(aims, places, strict=True))


def links(zoom: float = 1.0, pairs=((0, 1), (0, 2), (1, 2)), precision: float = 1e8) -> list[Link]:
    """What exact pictures would tell of `cameras`, to one who takes the focal length for 1 / `zoom` of what it is."""
    from_plane = []
    for aim, place in cameras():
        on_plane = np.array([[1, 0, -place[0]], [0, 1, -place[1]], [0, 0, 1 - place[2]]])
        from_plane.append(np.diag([zoom, zoom, 1.0]) @ aim @ on_plane)
    window = np.array([[0.6, 0, 0], [0, -0.6, 0], [0, 0, 1.0]])
    return [
        Link(a, b, from_plane[b] @ np.linalg.inv(from_plane[a]), window, np.eye(8) * precision)
        for a, b in pairs
    ]


def off(layout) -> float:
    """Degrees between the found and the true normal."""
    return float(np.degrees(np.arccos(np.clip(layout.normal @ cameras()[0][0][:, 2], -1, 1))))


def test_three_homographies_tell_the_plane():
    layout = lay_out(links(), hub=0, zoom_spread=0.03)
    assert off(layout) < 0.1 and layout.zoom == pytest.approx(1, abs=1e-3)
    for number, (aim, _) in enumerate(cameras()):
        assert np.degrees(layout.tilt(number)) == pytest.approx(np.degrees(np.arccos(aim[2, 2])), abs=0.1)


def test_three_homographies_tell_the_focal_length():
    layout = lay_out(links(zoom=1.1), hub=0, zoom_spread=0.1)
    assert layout.zoom == pytest.approx(1.1, rel=0.01) and off(layout) < 0.3


def test_contradicting_links_show_it():
    wrong = links()
    wrong[2] = Link(1, 2, wrong[2].homography @ turn(4, 2), wrong[2].window, wrong[2].precision)
    assert lay_out(wrong, 0, 0.03).error > 5 > lay_out(links(), 0, 0.03).error


def test_what_pictures_do_not_tell_is_uncertain():
    """Two photos have two explanations, and photos from one place any."""
    sure = lay_out(links(precision=1e6), 0, 0.03).uncertainty
    still = Link(0, 1, np.eye(3), links()[0].window, np.eye(8) * 1e6)
    assert np.degrees(sure) < 1 < 10 < np.degrees(lay_out([still], 0, 0.03).uncertainty)


def test_the_largest_square_is_the_largest():
    rng = np.random.default_rng(0)
    for _ in range(10):
        views = [
            np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]) + rng.normal(0, 0.15, (3, 3)) for _ in range(3)
        ]
        square = largest_square(views)
        if square is None:
            continue
        inside = [project(view, square.corners()) for view in views]
        assert all((points >= -1e-6).all() and (points <= 1 + 1e-6).all() for points in inside)
        larger = square.corners() + 0.02 * (square.corners() - square.middle)
        for shift in 0.01 * square.side * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]]):
            seen = [project(view, larger + shift) for view in views]
            assert any((points < 0).any() or (points > 1).any() for points in seen)


def test_views_that_show_nothing_in_common_have_no_square():
    left, right = np.eye(3), np.array([[1, 0, -1.5], [0, 1, 0], [0, 0, 1.0]])
    assert largest_square([left, right]) is None
    assert largest_square([left]).side == pytest.approx(1)


# -- photos as they are ------------------------------------------------------------------------


def photo(picture: np.ndarray, name: str = "a.jpg") -> Photo:
    height = picture.shape[0]
    focal = FOCAL_35MM / np.hypot(36, 24) * np.hypot(*picture.shape[:2])
    assert height >= 64
    return Photo(Path(name), np.ascontiguousarray(picture.transpose(2, 0, 1)), float(focal), True)


def test_a_photo_alone_is_its_own_frame():
    """The middle square, pixel by pixel, and the eye straight above it at the focal length."""
    picture = np.random.default_rng(0).integers(0, 255, (128, 96, 3), np.uint8)
    aligned = as_they_are([photo(picture)])
    assert aligned.resolution == 96
    views, seen = rectified(aligned, 96)
    assert (views[0].numpy().transpose(1, 2, 0) == picture[16:112]).all()
    assert not views[1:].any() and not seen[1:].any()
    assert aligned.cameras[0].eye == pytest.approx([0, 0, photo(picture).focal / 96])


def test_stretched_photos_fill_the_square():
    views = stretched([photo(corners())], 64)
    assert views.shape == (3, 3, 64, 64) and views[0, :, 2, 2].tolist() == [255, 0, 0]
    assert views[0, :, 61, 61].tolist() == [255, 255, 255] and not views[1:].any()


# -- photos laid on each other -----------------------------------------------------------------


def relief_photos(relief, height: int = 480) -> list[Photo]:
    found = pictures_of_relief(relief, builtin_scene(*STONE, dirty=False).cameras, height)
    return [photo(picture, f"{k}.jpg") for k, picture in enumerate(found)]


@pytest.fixture(scope="module")
def flat() -> list[Photo]:
    return relief_photos(lambda x, y: 0 * x)


def test_photos_of_a_flat_surface(flat):
    aligned = align(flat)
    judged = judge(aligned.cameras, true_cameras(*STONE))
    assert judged.pixels < 1 and judged.degrees < 0.5
    (said,) = aligned.remarks
    assert said.startswith("0.jpg, 1.jpg, 2.jpg: 0.") and "of 0.jpg; tilts 16°, 32°, 2°" in said


def test_up_is_where_the_reference_has_it(flat):
    turned = photo(flat[1].pixels[:, ::-1, ::-1].transpose(1, 2, 0), "turned.jpg")
    for reference in (0, 1):
        cameras = align([flat[0], turned], reference).cameras
        ends = [project(camera.map_to_view, np.array([[0, -0.1], [0, 0.1]])) for camera in cameras]
        downward = [bottom[1] > top[1] for bottom, top in ends]
        assert downward == [reference == 0, reference == 1]


@pytest.mark.parametrize("relief", [pytest.param(ball, marks=pytest.mark.drill), boxes])
def test_what_is_no_plane_is_told(relief):
    said = " ".join(align(relief_photos(relief)[:2]).remarks)
    assert "this is no flat surface, and its maps are wrong" in said or "1.jpg is left out" in said


def test_the_same_photo_three_times(flat):
    smaller = np.asarray(Image.fromarray(flat[0].pixels.transpose(1, 2, 0)).resize((300, 400)))
    aligned = align([flat[0], flat[0], photo(smaller, "smaller.jpg")])
    assert [camera is not None for camera in aligned.cameras] == [True, False, False]
    assert [remark[:11] for remark in aligned.remarks] == ["0.jpg is le", "smaller.jpg", "0.jpg alone"]
    assert "it was taken from the same place as 0.jpg, or is the same picture" in aligned.remarks[1]


def test_a_mirrored_photo_is_told(flat):
    mirrored = photo(flat[1].pixels[:, :, ::-1].transpose(1, 2, 0), "mirrored.jpg")
    aligned = align([flat[0], mirrored])
    assert aligned.cameras[1] is None
    assert aligned.remarks[0] == "mirrored.jpg is left out: it shows what 0.jpg shows, but mirrored."
    with pytest.raises(UserError, match=r"--reference 1: mirrored\.jpg is left out"):
        align([flat[0], mirrored], reference=1)


def test_photos_without_texture_are_told(flat):
    blank = photo(np.full((480, 360, 3), 120, np.uint8), "blank.jpg")
    aligned = align([blank, *flat[:2]])
    assert aligned.cameras[0] is None and None not in aligned.cameras[1:]
    assert "blank.jpg is left out: it has too little texture" in aligned.remarks[0]


def test_photos_of_different_materials_are_told(flat):
    other = pictures_of_relief(
        lambda x, y: 0 * x, builtin_scene(*STONE, dirty=False).cameras[:1], 480, seed=1
    )
    aligned = align([flat[0], photo(other[0], "other.jpg")])
    assert aligned.cameras[1] is None
    assert "other.jpg is left out: nothing in it lies on 0.jpg" in aligned.remarks[0]
    assert aligned.remarks[1].startswith("0.jpg alone is used: the picture itself is the frame")


# -- how sure it is ----------------------------------------------------------------------------


def test_what_runs_one_way_is_left_out():
    """Photos of streaks look alike (others are told otherwise), and slide."""
    places = builtin_scene(*STONE, dirty=False).cameras[:2]
    found = pictures_of_relief(lambda x, y: 0 * x, places, 480, streaks=True)
    streaked = [photo(picture, f"{k}.jpg") for k, picture in enumerate(found)]
    aligned = align(streaked)
    assert aligned.cameras[1] is None
    assert aligned.remarks[0].startswith("1.jpg is left out: its texture runs one way")


def test_blocks_that_contradict_the_others_count_little():
    """A corner whose details lie three pixels lower in the second picture, as reflections do, doesn't pull the rest."""
    rng, side = np.random.default_rng(0), 512
    picture = cv2.GaussianBlur(rng.normal(127, 90, (side, side, 3)).astype(np.float32), (0, 0), 1.5)
    other = picture + cv2.GaussianBlur(rng.normal(0, 20, picture.shape).astype(np.float32), (0, 0), 1.5)
    other[:200, :200] = np.roll(other, 3, 0)[:200, :200]
    one, two = (each.clip(2, 249).astype(np.uint8).transpose(2, 0, 1) for each in (picture, other))
    pyramid, view = PhotoPyramid(one), ViewPyramid(two)
    start, _ = refined(pyramid, view, Plane(UPRIGHT), side)
    found = settled(pyramid, view, start, side)
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    off = [
        np.abs(project(motion.matrix, corners) - project(UPRIGHT, corners)).max() * side
        for motion in (start, found.motion)
    ]
    assert off[1] < 0.2 < off[0]
