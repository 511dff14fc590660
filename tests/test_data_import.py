from __future__ import annotations

import io
import json
import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import OpenEXR
import pyarrow
import pyarrow.parquet
import pytest
import tifffile
from PIL import Image

from neuropbr_dist.commands import main
from neuropbr_dist.config import TrainConfig
from neuropbr_dist.config.schema import DataConfig
from neuropbr_dist.data.files.png import encoded
from neuropbr_dist.data.importer import run as importer
from neuropbr_dist.data.importer.convert import Options
from neuropbr_dist.data.importer.folders import FolderLibrary
from neuropbr_dist.data.importer.matsynth import HubLibrary, ParquetLibrary, Wanted, licence_key
from neuropbr_dist.data.importer.normals import judge_convention
from neuropbr_dist.data.importer.pictures import read_picture, read_size
from neuropbr_dist.data.importer.run import import_materials
from neuropbr_dist.data.open import open_samples
from neuropbr_dist.data.packed.source import PackedSet
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.families import material_maps
from tests.support.material_files import png, write_set

SIDE = 128
RNG = np.random.default_rng(0)


drawn = lru_cache(material_maps)


def builtin(index: int, side: int = SIDE) -> dict[str, np.ndarray]:
    """A built-in material's maps as pictures; normals OpenGL."""
    maps = drawn(3, index, side).transpose(1, 2, 0)
    parts = maps[..., :3], maps[..., 3], maps[..., 4], maps[..., 5:]
    return dict(
        zip(("albedo", "roughness", "metallic", "normal"), map(np.ascontiguousarray, parts), strict=True)
    )


def turned(normals: np.ndarray) -> np.ndarray:
    return np.dstack([normals[..., 0], 255 - normals[..., 1], normals[..., 2]])


def save(path: Path, pixels: np.ndarray, **how) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)


def save_exr(path: Path, pixels: np.ndarray, dtype=np.float16) -> None:
    channels = {"RGB" if pixels.ndim == 3 else "Y": pixels.astype(dtype)}
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, channels).write(str(path))


def save_plain(folder: Path, maps: dict[str, np.ndarray]) -> None:
    for name, pixels in maps.items():
        save(folder / f"{name}.png", pixels)


def read(folder: Path) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(Image.open(folder / f"{name}.png"))
        for name in ("albedo", "roughness", "metallic", "normal")
    }


def bring(src: Path, dest: Path, **options):
    run = {name: options.pop(name) for name in ("strict", "workers") if name in options}
    return import_materials(FolderLibrary(src, dest), dest, Options(**options), progress=False, **run)


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], within: int = 0) -> None:
    for name, pixels in wanted.items():
        assert found[name].shape == pixels.shape, name
        assert np.abs(found[name].astype(int) - pixels).max() <= within, name


# -- pictures of every kind ------------------------------------------------------------------

GRAY, COLOUR, ALPHA = (9, 7), (9, 7, 3), (9, 7, 4)


def some(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape).astype(dtype)


@pytest.mark.parametrize("shape", [GRAY, COLOUR, ALPHA])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("how", ["plain", "lzw", "planes"])
def test_tiff_of_every_kind_is_read_to_the_bit(tmp_path, shape, dtype, how):
    pixels = RNG.random(shape, np.float32) if dtype is np.float32 else some(shape, dtype)
    stored, planes = pixels, how == "planes" and len(shape) == 3
    if planes:
        stored = np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric="rgb" if len(shape) == 3 else "minisblack",
        planarconfig="separate" if planes else None, compression="lzw" if how == "lzw" else None,
        predictor=how == "lzw",
    )  # fmt: skip
    found = read_picture(tmp_path / "a.tif")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels.reshape(9, 7, -1))
    assert read_size(tmp_path / "a.tif") == (7, 9, 8 * np.dtype(dtype).itemsize)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("interlaced", [False, True])
def test_png_of_every_kind_is_read_to_the_bit(tmp_path, colour, channels, depth, interlaced):
    pixels = some((9, 7, channels), np.uint16 if depth == 16 else np.uint8)
    (tmp_path / "a.png").write_bytes(png(pixels, colour, depth, interlaced=interlaced))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), pixels)
    assert read_size(tmp_path / "a.png") == (7, 9, depth)


@pytest.mark.parametrize("shape", [GRAY, COLOUR])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_png_writer_is_lossless(tmp_path, shape, dtype):
    pixels = some(shape, dtype)
    (tmp_path / "a.png").write_bytes(encoded(pixels))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), pixels.reshape(9, 7, -1))


def test_exr_tga_webp_bmp_and_palettes_are_read(tmp_path):
    floats = RNG.random(COLOUR, np.float32)
    for name, dtype in (("half", np.float16), ("full", np.float32)):
        save_exr(tmp_path / f"{name}.exr", floats, dtype)
        np.testing.assert_array_equal(read_picture(tmp_path / f"{name}.exr"), floats.astype(dtype))
    save_exr(tmp_path / "gray.exr", floats[..., 0])
    assert read_picture(tmp_path / "gray.exr").shape == (9, 7, 1)
    assert read_size(tmp_path / "gray.exr")[:2] == (7, 9)
    pixels = some(COLOUR, np.uint8)
    for name, how in (("a.tga", {"compression": "tga_rle"}), ("a.webp", {"lossless": True}), ("a.bmp", {})):
        save(tmp_path / name, pixels, **how)
        np.testing.assert_array_equal(read_picture(tmp_path / name), pixels)
    Image.fromarray(pixels // 64 * 64).quantize(64).save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "p.png"), pixels // 64 * 64)


def test_what_can_not_be_read_is_one_line_that_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "cut.png").write_bytes(encoded(some(COLOUR, np.uint8))[:-20])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "cut.exr").write_bytes(b"v/1\x01" + bytes(30))
    (tmp_path / "cut.tif").write_bytes(b"II*\x00" + bytes(30))
    Image.new("CMYK", (8, 8)).save(tmp_path / "print.jpg")
    for name in ("cut.png", "text.jpg", "cut.exr", "cut.tif", "print.jpg", "none.png"):
        with pytest.raises(UserError, match=name) as caught:
            read_picture(tmp_path / name)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(UserError, match=r"needs OpenEXR, .* pip install 'neuropbr_dist\[import\]'"):
        read_picture(tmp_path / "cut.exr")


# -- the convention of normals ---------------------------------------------------------------


def test_the_slopes_tell_the_convention_of_every_built_in_family():
    for index in range(15):
        normals = builtin(index)["normal"]
        assert judge_convention(normals).convention == "opengl", index
        assert judge_convention(turned(normals)).convention == "directx", index


def test_compression_noise_and_16_bits_do_not_change_what_the_slopes_tell():
    normals = turned(builtin(4, 256)["normal"])
    file = io.BytesIO()
    Image.fromarray(normals).save(file, "JPEG", quality=60)
    noisy = np.clip(normals + RNG.normal(0, 6, normals.shape), 0, 255).astype(np.uint8)
    for one in (
        np.asarray(Image.open(file)),
        noisy,
        normals.astype(np.uint16) * 257,
        normals / np.float32(255),
    ):
        assert judge_convention(one).convention == "directx"


def test_slopes_that_tell_nothing_are_asked_for_never_guessed(tmp_path):
    noise = np.dstack(
        [RNG.integers(118, 138, (2, SIDE, SIDE)).transpose(1, 2, 0), np.full((SIDE, SIDE), 254)]
    )
    ridges = np.full((SIDE, SIDE, 3), (128, 128, 254), np.uint8)
    ridges[..., 1] += (np.sin(np.arange(SIDE) / 5) * 15).astype(np.uint8)[:, None]
    flat = np.full((SIDE, SIDE, 3), (128, 127, 255), np.uint8)
    for name, normals in (("noise", noise.astype(np.uint8)), ("ridges", ridges), ("flat", flat)):
        save_plain(tmp_path / "src" / name, builtin(0) | {"normal": normals})
    summary = bring(tmp_path / "src", tmp_path / "out")
    assert [row.name for row in summary.imported] == ["flat"]
    asked = {row.name: row.reason for row in summary.rows if row.reason}
    assert all("--normals opengl or directx says it" in asked[name] for name in ("noise", "ridges"))
    assert bring(tmp_path / "src", tmp_path / "out", normals="directx").clean
    assert_same(read(tmp_path / "out/ridges"), {"normal": turned(ridges)})
    assert_same(read(tmp_path / "out/flat"), {"normal": flat})


def test_a_name_that_the_slopes_contradict_is_refused(tmp_path):
    maps = builtin(1)
    for name, normals in (("right", turned(maps["normal"])), ("wrong", maps["normal"])):
        folder = tmp_path / "src" / name
        save(folder / "x_Color.png", maps["albedo"] if name == "right" else builtin(2)["albedo"])
        save(folder / "x_Roughness.png", maps["roughness"])
        save(folder / "x_NormalDX.png", normals)
    summary = bring(tmp_path / "src", tmp_path / "out")
    assert [row.name for row in summary.imported] == ["right"]
    assert "DirectX by its name, OpenGL by its slopes" in summary.rows[1].reason
    assert_same(read(tmp_path / "out/right"), {"normal": maps["normal"]})


# -- folders of other people -----------------------------------------------------------------


def vendors(root: Path) -> dict[str, dict[str, np.ndarray]]:
    """Packs as stores and programs write them; returns what each material's maps are."""
    m = {
        name: builtin(i)
        for i, name in enumerate(("ambient", "haven", "unreal", "unity", "substance", "gloss"))
    }
    x = m["ambient"]
    for word, pixels in (("Color", x["albedo"]), ("Roughness", x["roughness"]), ("Metalness", x["metallic"]),
                         ("NormalGL", x["normal"]), ("NormalDX", turned(x["normal"])), ("AmbientOcclusion", x["roughness"])):  # fmt: skip
        save(root / f"acg/Steel01/Steel01_1K-PNG_{word}.png", pixels)
    save(root / "acg/Steel01/Steel01.png", x["albedo"])  # the store's preview
    x, base = m["haven"], root / "haven/rock_1k.blend/textures/rock"
    save(Path(f"{base}_diff_1k.png"), x["albedo"])
    save(Path(f"{base}_arm_1k.png"), np.dstack([255 - x["roughness"], x["roughness"], x["metallic"]]))
    save_exr(Path(f"{base}_nor_gl_1k.exr"), x["normal"] / 255)
    x = m["unreal"]
    save(root / "ue/T_Wall_BC.tga", x["albedo"])
    save(root / "ue/T_Wall_N.tga", turned(x["normal"]))
    save(root / "ue/T_Wall_ORM.tga", np.dstack([255 - x["roughness"], x["roughness"], x["metallic"]]))
    x = m["unity"]
    save(root / "unity/Crate_AlbedoTransparency.png", np.dstack([x["albedo"], x["roughness"]]))
    save(root / "unity/Crate_MetallicSmoothness.png", np.dstack([*[x["metallic"]] * 3, 255 - x["roughness"]]))
    save(root / "unity/Crate_Normal.png", x["normal"])
    x = m["substance"]
    save(root / "unity/Pipe_Base_Color.png", x["albedo"])
    for word, pixels in (("Normal", turned(x["normal"])), ("Roughness", x["roughness"])):
        tifffile.imwrite(root / f"unity/Pipe_{word}.tif", pixels.astype(np.uint16) * 257, compression="lzw")
    save(root / "unity/Pipe_Metallic.png", x["metallic"])
    x = m["gloss"]
    save(root / "Old Wall/diffuse.png", x["albedo"])
    save(root / "Old Wall/glossiness.webp", 255 - x["roughness"], lossless=True)
    save(root / "Old Wall/normal.png", x["normal"])
    x["metallic"] = np.zeros_like(x["metallic"])
    return {"Steel01": m["ambient"], "rock_1k": m["haven"], "ue": m["unreal"], "unity_Crate": m["unity"],
            "unity_Pipe": m["substance"], "Old_Wall": m["gloss"]}  # fmt: skip


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    root = tmp_path_factory.mktemp("packs")
    return root, vendors(root)


@pytest.mark.multiprocess
def test_packs_of_all_kinds_come_in_to_the_bit(packs, tmp_path, capsys):
    src, wanted = packs
    main(["data", "import", str(src), str(tmp_path / "out"), "--workers", "2"], "neuropbr")
    told = capsys.readouterr().out
    assert "6 materials imported (6 of 128 px)\n" in told
    assert "T_Wall_ORM.tga:g" in told and "~Crate_MetallicSmoothness.png:a" in told
    assert (
        "normals DirectX by slopes" in told
        and "albedo: alpha not kept" in told
        and "metallic 0: no map" in told
    )
    names = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} - {".import"}
    assert names == set(wanted)
    for name, maps in wanted.items():
        assert_same(read(tmp_path / "out" / name), maps, within=1 if name == "rock_1k" else 0)  # half floats
    assert Image.open(tmp_path / "out/contact_sheet_1.jpg").size == (2 * 660, 3 * 148)
    assert (tmp_path / "out/import.txt").read_text().splitlines()[-1] == "6 materials imported (6 of 128 px)"
    assert json.loads((tmp_path / "out/sources.json").read_text()).keys() == set(wanted)


def test_16_bits_and_a_side_of_ones_own(packs, tmp_path):
    src, wanted = packs
    bring(src, tmp_path / "out", bits=16, size=64)
    found = {
        name: read_picture(tmp_path / f"out/unity_Pipe/{name}.png")
        for name in ("albedo", "roughness", "normal")
    }
    assert all(pixels.dtype == np.uint16 and pixels.shape[0] == 64 for pixels in found.values())
    blocks = wanted["unity_Pipe"]["roughness"].reshape(64, 2, 64, 2).mean((1, 3))
    assert np.abs(found["roughness"][..., 0] / 257 - blocks).max() < 0.01
    light = (wanted["unity_Pipe"]["albedo"] / 255.0 + 0.055) / 1.055
    light = np.where(
        wanted["unity_Pipe"]["albedo"] / 255.0 <= 0.04045,
        wanted["unity_Pipe"]["albedo"] / 255.0 / 12.92,
        light**2.4,
    )
    mean = light.reshape(64, 2, 64, 2, 3).mean((1, 3))
    srgb = np.where(mean <= 0.0031308, mean * 12.92, 1.055 * mean ** (1 / 2.4) - 0.055)
    assert np.abs(found["albedo"] / 65535 - srgb).max() < 1e-4
    length = np.linalg.norm(found["normal"] / 65535 * 2 - 1, axis=-1)
    assert np.abs(length - 1).max() < 1e-3


def test_what_is_not_what_its_name_says_is_refused(tmp_path):
    maps = builtin(5)
    packed = np.dstack([255 - maps["roughness"], maps["roughness"], maps["metallic"]])
    save_plain(tmp_path / "src/packed", maps | {"roughness": packed})
    save_plain(tmp_path / "src/swapped", maps | {"normal": maps["albedo"]})
    save_plain(tmp_path / "src/gray", maps | {"normal": maps["roughness"]})
    save_plain(tmp_path / "src/other_part", maps | {"roughness": maps["roughness"][:64]})
    black = np.where(np.arange(SIDE)[:, None, None] < 20, 0, builtin(6)["albedo"]).astype(np.uint8)
    del maps["metallic"]
    save_plain(
        tmp_path / "src/metals", maps | {"albedo": black, "specular": np.full((SIDE, SIDE), 200, np.uint8)}
    )
    save_plain(tmp_path / "src/dielectric", maps | {"specular": np.full((SIDE, SIDE), 55, np.uint8)})
    reasons = {row.name: row.reason for row in bring(tmp_path / "src", tmp_path / "out").rows}
    assert "roughness.png: has colour in" in reasons["packed"]
    assert "normal.png: looks swapped" in reasons["swapped"]
    assert "a gray picture; a normal map has X, Y and Z" in reasons["gray"]
    assert "the roughness map is 128 x 64, the albedo 128 x 128" in reasons["other_part"]
    assert "specular.png: bright where the colour is black" in reasons["metals"]
    assert reasons["dielectric"] == ""


def test_two_channel_and_signed_normals_are_made_whole(tmp_path):
    maps = builtin(7)
    for name in ("flat_blue", "signed"):
        save_plain(tmp_path / "src" / name, maps | {"albedo": np.roll(maps["albedo"], len(name), axis=0)})
    save(
        tmp_path / "src/flat_blue/normal.png",
        np.dstack([maps["normal"][..., :2], np.zeros((SIDE, SIDE), np.uint8)]),
    )
    (tmp_path / "src/signed/normal.png").unlink()
    save_exr(tmp_path / "src/signed/normal.exr", maps["normal"] / 127.5 - 1, np.float32)
    summary = bring(tmp_path / "src", tmp_path / "out")
    assert (
        "normals: Z from X and Y" in summary.rows[0].notes
        and "normals: floats from -1 to 1" in summary.rows[1].notes
    )
    assert_same(read(tmp_path / "out/flat_blue"), {"normal": maps["normal"]}, within=2)
    assert_same(read(tmp_path / "out/signed"), {"normal": maps["normal"]})


def test_pictures_that_are_not_square_give_the_middle_or_each_tile(tmp_path):
    left, right = builtin(8), builtin(9)
    both = {name: np.concatenate([left[name], right[name]], axis=1) for name in left}
    save_plain(tmp_path / "src/strip", both)
    bring(tmp_path / "src", tmp_path / "tiles", tiles=True)
    assert_same(read(tmp_path / "tiles/strip_1"), left)
    assert_same(read(tmp_path / "tiles/strip_2"), right)
    summary = bring(tmp_path / "src", tmp_path / "middle")
    assert "middle square of 256 x 128" in summary.rows[0].notes
    assert_same(read(tmp_path / "middle/strip"), {name: pixels[:, 64:192] for name, pixels in both.items()})


def test_maps_of_unequal_sides_take_the_smaller_of_albedo_and_normals(tmp_path):
    big, small = builtin(10, 256), builtin(10)
    save_plain(
        tmp_path / "src/x", small | {"albedo": big["albedo"], "roughness": small["roughness"][::2, ::2]}
    )
    (row,) = bring(tmp_path / "src", tmp_path / "out").rows
    assert row.side == SIDE and {"albedo 256 to 128 px", "roughness 64 to 128 px"} <= set(row.notes)


# -- going on, copies, exit codes ------------------------------------------------------------


def test_a_call_goes_on_where_another_was_killed_and_redoes_what_has_changed(tmp_path, monkeypatch):
    src, out = tmp_path / "src", tmp_path / "out"
    for index in range(4):
        save_plain(src / f"m{index}", builtin(index))
    made: list[str] = []
    convert = importer.convert

    def counted(takes, *rest):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(takes["albedo"].files[0].split("/")[0])
        return convert(takes, *rest)

    monkeypatch.setattr(importer, "convert", counted)
    with pytest.raises(KeyboardInterrupt):
        bring(src, out)
    assert sorted(path.name for path in out.glob("m*")) == ["m0", "m1"]
    # Killed between the note and the move, and in the middle of writing another.
    (out / "m1").rename(out / ".import/ready/m1")
    shutil.copytree(out / "m0", out / ".import/ready/m9")
    monkeypatch.setattr(importer, "convert", lambda *all_: made.append("more") or convert(*all_))
    assert bring(src, out).clean and made == ["m0", "m1", "more", "more"]
    assert sorted(path.name for path in out.glob("m*")) == ["m0", "m1", "m2", "m3"]
    assert list((out / ".import/ready").iterdir()) == []
    made.clear()
    save(src / "m2/roughness.png", 255 - builtin(2)["roughness"])
    bring(src, out)
    assert made == ["more"]
    assert_same(read(out / "m2"), {"roughness": 255 - builtin(2)["roughness"]})


def test_copies_are_named_and_stay_out_and_two_sources_do_not_take_each_others_places(tmp_path):
    save_plain(tmp_path / "a/brick", builtin(0))
    save_plain(tmp_path / "a/wall", builtin(0))
    save_plain(tmp_path / "b/brick", builtin(1))
    save_plain(tmp_path / "b/wood", builtin(2))
    for _ in range(2):
        summary = bring(tmp_path / "a", tmp_path / "out")
        assert [(row.name, row.reason) for row in summary.rows] == [
            ("brick", ""),
            ("wall", "the same pictures as brick"),
        ]
        assert not (tmp_path / "out/wall").exists()
    summary = bring(tmp_path / "b", tmp_path / "out")
    assert [row.name for row in summary.imported] == ["brick", "wood"]
    assert_same(read(tmp_path / "out/brick"), builtin(0))
    assert f"was imported from {tmp_path / 'a'}" in next(
        row.reason for row in summary.rows if row.name == "brick" and row.reason
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("")
    with pytest.raises(UserError, match="not empty, and no import was begun in it"):
        bring(tmp_path / "a", tmp_path / "full")


def test_conventions_of_upstreams_renderer_are_words_of_the_command(tmp_path):
    """Its pictures show green turned over, and albedo bytes taken as linear."""
    save_plain(tmp_path / "src/good", builtin(0))
    words = ["--workers", "1", "--flip-green", "--linear-albedo"]
    main(["data", "import", str(tmp_path / "src"), str(tmp_path / "out"), *words], "neuropbr")
    found = read(tmp_path / "out/good")
    wanted = builtin(0) | {"normal": turned(builtin(0)["normal"])}
    albedo = wanted.pop("albedo") / 255
    encoded = np.where(albedo <= 0.0031308, 12.92 * albedo, 1.055 * albedo ** (1 / 2.4) - 0.055) * 255
    assert_same(found, wanted)
    assert np.abs(found["albedo"] - encoded).max() <= 0.51


def test_exit_codes_and_strict(tmp_path, capsys):
    save_plain(tmp_path / "src/good", builtin(0))
    save(tmp_path / "src/bad/bad_albedo.png", builtin(1)["albedo"])
    save(tmp_path / "src/bad/bad_normal.png", builtin(1)["normal"])
    save(tmp_path / "src/IMG_1.png", builtin(1)["albedo"])

    def code(*words: str) -> int:
        with pytest.raises(SystemExit) as stopped:
            main(
                ["data", "import", str(tmp_path / "src"), str(tmp_path / "out"), "--workers", "1", *words],
                "neuropbr",
            )
        return int(stopped.value.code)

    assert code("--strict") == 1 and not (tmp_path / "out").exists()
    assert "left out  bad: no roughness\nnot understood  IMG_1.png\n" in capsys.readouterr().out
    assert code() == 1 and (tmp_path / "out/good/albedo.png").exists()
    shutil.rmtree(tmp_path / "src/bad")
    (tmp_path / "src/IMG_1.png").unlink()
    main(
        ["data", "import", str(tmp_path / "src"), str(tmp_path / "new"), "--workers", "1", "--strict"],
        "neuropbr",
    )
    assert (tmp_path / "new/good/albedo.png").exists()
    with pytest.raises(UserError, match=r"no pictures in it .* it holds 1 \.zip files"):
        (tmp_path / "zips").mkdir()
        (tmp_path / "zips/a.zip").write_bytes(b"")
        FolderLibrary(tmp_path / "zips", tmp_path / "out")


# -- MatSynth --------------------------------------------------------------------------------


def encoded_picture(pixels: np.ndarray) -> dict[str, object]:
    return {"bytes": encoded(pixels), "path": None}


@pytest.fixture(scope="module")
def matsynth(tmp_path_factory) -> Path:
    """Two splits in MatSynth's schema, as `datasets` writes them."""
    root = tmp_path_factory.mktemp("matsynth")
    features = datasets.Features(
        {
            "name": datasets.Value("string"),
            "category": datasets.ClassLabel(names=["ceramic", "metal", "wood"]),
            "metadata": {key: datasets.Value("string") for key in ("license", "source", "link")}
            | {"authors": datasets.Sequence(datasets.Value("string"))},
            **{
                name: datasets.Image() for name in ("basecolor", "normal", "roughness", "metallic", "opacity")
            },
        }
    )
    (root / "data").mkdir()
    index = 0
    for split, count in (("train", 4), ("test", 2)):
        rows: dict[str, list] = {name: [] for name in features}
        for _ in range(count):
            maps = builtin(index, 64)
            rows["name"].append(f"acg_{index}")
            rows["category"].append(index % 3)
            licence = ("CC0", "CC-BY 4.0", "CC BY-SA 4.0")[index % 3]
            rows["metadata"].append({"license": licence, "source": "x", "link": "y", "authors": ["z"]})
            rows["basecolor"].append(encoded_picture(maps["albedo"]))
            for name in ("normal", "roughness"):
                rows[name].append(encoded_picture(maps[name]))
            rows["metallic"].append(None if index == 0 else encoded_picture(maps["metallic"]))
            rows["opacity"].append(None)
            index += 1
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            root / f"data/{split}-00000-of-00001.parquet", batch_size=3
        )
    return root


def test_parquet_by_licence_category_and_split(matsynth, tmp_path):
    summary = import_materials(
        ParquetLibrary(matsynth, Wanted()), tmp_path / "all", Options(), progress=False
    )
    assert summary.clean and len(summary.rows) == 6
    assert_same(read(tmp_path / "all/acg_4"), builtin(4, 64))
    assert not read(tmp_path / "all/acg_0")["metallic"].any()
    assert json.loads((tmp_path / "all/split.json").read_text()) == {"validation": ["acg_4", "acg_5"]}
    source = json.loads((tmp_path / "all/sources.json").read_text())["acg_1"]
    assert source == {
        "category": "metal",
        "license": "CC-BY 4.0",
        "source": "x",
        "link": "y",
        "authors": ["z"],
    }

    def names(**wanted: tuple[str, ...]) -> list[str]:
        return [job.name for job in ParquetLibrary(matsynth, Wanted(**wanted)).jobs(lambda _: False)]

    assert names(licences=("cc0", "cc-by")) == ["acg_4", "acg_0", "acg_1", "acg_3"]
    assert names(categories=("wood",), splits=("train",)) == ["acg_2"]
    with pytest.raises(UserError, match=r"no material of the licence.* it holds .*CC0, ceramic: 2"):
        ParquetLibrary(matsynth, Wanted(licences=("mit",)))
    only_test = ParquetLibrary(matsynth, Wanted(splits=("test",)))
    import_materials(only_test, tmp_path / "test", Options(), progress=False)
    assert not (tmp_path / "test/split.json").exists()  # nothing would be left to train on
    assert licence_key("CC0 1.0 Universal") == licence_key("cc0") != licence_key("CC BY")


def test_the_stream_of_the_hub_gives_the_same(matsynth, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for kind, source in (
        ("hub", HubLibrary(str(matsynth), Wanted(("cc0",)))),
        ("files", ParquetLibrary(matsynth, Wanted(("cc0",)))),
    ):
        import_materials(source, tmp_path / kind, Options(), progress=False)
    for path in sorted((tmp_path / "files").glob("*/*.png")):
        assert (tmp_path / "hub" / path.relative_to(tmp_path / "files")).read_bytes() == path.read_bytes()
    assert {p.name for p in (tmp_path / "hub").iterdir()} == {p.name for p in (tmp_path / "files").iterdir()}
    with pytest.raises(UserError, match="no split dev; it has"):
        HubLibrary(str(matsynth), Wanted(splits=("dev",)))
    with pytest.raises(UserError, match="hub:nobody/nothing"):
        HubLibrary("nobody/nothing", Wanted())


def test_other_parquet_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"name": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column basecolor, normal, roughness; not of MatSynth's schema"):
        ParquetLibrary(tmp_path, Wanted())
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"a\.parquet: not a parquet file"):
        ParquetLibrary(tmp_path, Wanted())


@pytest.mark.parametrize("name", ["../../victim", "..", "", "/etc"])
def test_a_forged_journal_deletes_nothing_outside(tmp_path, name):
    (tmp_path / "victim").mkdir()
    for index, material in enumerate(("stone", "wood")):
        save_plain(tmp_path / "src" / material, builtin(index, 64))
    dest = tmp_path / "in/dest"
    bring(tmp_path / "src", dest)
    journal = dest / importer.STATE / importer.JOURNAL
    first, line = map(json.loads, journal.read_text().splitlines())
    line["outputs"][0]["name"], line["key"] = name, ""
    journal.write_text(f"{json.dumps(first)}\n{json.dumps(line)}\n")
    shutil.rmtree(dest / "wood")
    bring(tmp_path / "src", dest)
    assert (tmp_path / "victim").is_dir() and (dest / "wood/albedo.png").exists()
    for link in (dest / importer.STATE / importer.READY / "a", dest / "b"):
        link.symlink_to(tmp_path / "victim")
        with pytest.raises(UserError, match=r"a link to .*victim; nothing outside"):
            bring(tmp_path / "src", dest)
        link.unlink()


# -- after it --------------------------------------------------------------------------------


def test_a_folder_of_materials_is_verified_and_packed_with_its_split(packs, tmp_path, capsys):
    src, wanted = packs
    bring(src, tmp_path / "out")
    save_plain(tmp_path / "out/larger", builtin(11, 512))
    (tmp_path / "out/split.json").write_text('{"validation": ["ue", "larger"]}')
    main(["data", "verify", "--materials", str(tmp_path / "out")], "neuropbr")
    assert "7 materials, 28 pictures: clean" in capsys.readouterr().out
    main(
        ["data", "pack", "--materials", str(tmp_path / "out"), str(tmp_path / "packed"), "--workers", "1"],
        "neuropbr",
    )
    assert "Packed 7 materials into" in capsys.readouterr().out
    packed = PackedSet(tmp_path / "packed", 256)
    assert packed.materials == sorted([*wanted, "larger"]) and len(packed.entries) == 0
    maps = np.empty((8, 256, 256), np.uint8)
    packed.maps(packed.materials.index("larger"), maps)
    assert maps[3].std() > 0
    assert json.loads((tmp_path / "packed/split.json").read_text()) == {"validation": ["larger", "ue"]}
    shutil.copytree(tmp_path / "out/ue", tmp_path / "out/again")
    (tmp_path / "out/larger/normal.png").unlink()
    with pytest.raises(SystemExit):
        main(["data", "verify", "--materials", str(tmp_path / "out")], "neuropbr")
    told = capsys.readouterr().out
    assert "larger: no normal.png\n" in told and "again'" in told and "2 faults in 2 materials" in told


def test_training_honours_the_sets_own_split(tmp_path):
    names = {f"sample_{i:04d}": f"material_{i % 4}" for i in range(8)}
    inputs, outputs = write_set(tmp_path, names)
    (outputs / "unrendered").mkdir()
    cfg = TrainConfig(data=DataConfig(input_dir=str(inputs), output_dir=str(outputs)))
    cfg.training.checkpoint_dir = str(tmp_path / "run")
    (outputs / "split.json").write_text('{"validation": ["material_2", "unrendered"]}')
    samples = open_samples(cfg)
    assert {sample.material for sample in samples.val} == {"material_2"} and len(samples.train) == 6
    main(["data", "pack", str(inputs), str(outputs), str(tmp_path / "packed"), "--workers", "1"], "neuropbr")
    cfg.data = DataConfig(packed_dir=str(tmp_path / "packed"))
    packed = open_samples(cfg)
    assert [entry.key for entry in packed.val] == [sample.key for sample in samples.val]
    assert packed.fingerprint == samples.fingerprint
    for content, reason in (
        ('{"validation": ["material_2", "nowhere"]}', "no such material: nowhere"),
        ('{"validation": ["material_2", "material_2"]}', "stands in it twice"),
        ('{"test": []}', "not {"),
        ("[", "not JSON"),
        ('{"validation": []}', "leaves no sample to validate with"),
        (json.dumps({"validation": [f"material_{i}" for i in range(4)]}), "leaves no sample to train on"),
    ):
        (tmp_path / "packed/split.json").write_text(content)
        with pytest.raises(UserError, match=reason):
            open_samples(cfg)
    (tmp_path / "packed/split.json").unlink()
    os.mkfifo(tmp_path / "packed/split.json")  # not another split, in silence
    with pytest.raises(UserError, match=r"split\.json: not a file"):
        open_samples(cfg)
