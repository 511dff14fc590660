from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from neuropbr_dist.data.importer.assign import Found, find_materials
from neuropbr_dist.materials.channels import MapName
from neuropbr_dist.materials.names import read_name

DATA = Path(__file__).parent / "data"
KNOWN = yaml.safe_load((DATA / "file_lists.yaml").read_text())
HELD_BACK = yaml.safe_load((DATA / "file_lists_held_back.yaml").read_text())
LISTS = [*KNOWN, *HELD_BACK]
ORDER: tuple[MapName, ...] = ("albedo", "normal", "roughness", "metallic")


def taken(found: Found) -> str:
    return " ".join(str(found.takes[name]) if name in found.takes else "-" for name in ORDER)


@pytest.mark.parametrize("listed", LISTS, ids=lambda listed: listed["source"])
def test_in_a_real_list_no_map_is_taken_for_another_and_what_is_not_whole_is_refused_by_name(listed):
    names = find_materials(listed["files"])
    got = {taken(found) for found in names.materials if not found.reason}
    assert got <= set(listed["take"])
    refused = {file for found in names.materials if found.reason for file in found.files} | set(names.strays)
    assert refused >= set(listed["refuse"])
    for missed in set(listed["take"]) - got:
        assert missed.split()[0] in refused
    assert all(found.takes == {} for found in names.materials if found.reason)


def test_of_the_real_lists_nearly_all_are_complete_without_a_flag():
    wanted = [listed for listed in LISTS if listed["take"]]
    complete = [
        listed["source"]
        for listed in wanted
        if {taken(f) for f in find_materials(listed["files"]).materials if not f.reason}
        == set(listed["take"])
    ]
    assert len(KNOWN) >= 60 and len(HELD_BACK) == 20
    assert len(complete) >= 0.95 * len(wanted) > 76
    assert sum(len(listed["take"]) for listed in wanted) > 150


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ("a_diffuse.png a_specular.png a_gloss.png a_normal.png", "a specular workflow (a_specular.png, no"),
        ("a_albedo.png a_basecolor.png a_rough.png a_normal.png", "may each be the base colour"),
        ("a_albedo.png a_normal.png a_nrm.png a_rough.png", "a_normal.png, a_nrm.png may each be the normal"),
        ("a_albedo.png a_normal.png", "no roughness"),
        ("a_albedo.png a_rough.png", "no normal"),
        ("a_albedo.png a_normal.png a_rm.png a_rough.png", "no metallic, and a_rm.png may hold several maps"),
        ("T_a_A.png T_a_N.png T_a_M.png", "T_a_M.png may be metallic or a mask"),
        ("T_a_A.png T_a_D.png T_a_H.png T_a_N.png T_a_R.png", "may each be the base colour"),
        ("a_albedo.png a_normal.dds a_rough.png", "no normal; of a format that isn't read: a_normal.dds"),
        ("b_x_albedo.png b_x_normal.png b_x_rough.png b_all_metallic.png", "b_all_metallic.png may be it"),
    ],
)  # fmt: skip
def test_what_names_leave_open_is_refused_with_the_reason(files, reason):
    (found,) = find_materials(files.split()).materials
    assert reason in found.reason and found.takes == {}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ("x_2k_diff.png x_2k_nor_dx.exr x_2k_nor_gl.exr x_2k_rough.exr x_4k_diff.png",
         "x_4k_diff.png x_2k_nor_gl.exr x_2k_rough.exr -"),
        ("4k/c_color.jpg 1k/c_color.png 1k/c_normal.png 1k/c_roughness.png",
         "4k/c_color.jpg 1k/c_normal.png 1k/c_roughness.png -"),
        ("BASECOLOR.JPG Normal-Map.JPG Smooth.tga", "BASECOLOR.JPG Normal-Map.JPG ~Smooth.tga -"),
        ("car paint metallic roughness.png car paint metallic base color.png car paint metallic normal.png",
         "car paint metallic base color.png car paint metallic normal.png car paint metallic roughness.png -"),
        ("gold_metallic_roughness.png gold_base_color.png gold_normal.png",
         "gold_base_color.png gold_normal.png gold_metallic_roughness.png:g gold_metallic_roughness.png:b"),
        ("s_color.png s_normal.png s_rough.png s.png s_preview.jpg", "s_color.png s_normal.png s_rough.png -"),
    ],
)  # fmt: skip
def test_readings_that_neighbours_decide(files, wanted):
    parts = (
        files.replace(".png ", ".png|")
        .replace(".jpg ", ".jpg|")
        .replace(".JPG ", ".JPG|")
        .replace(".exr ", ".exr|")
    )
    names = find_materials(parts.split("|"))
    (found,) = names.materials
    assert found.reason == "" and names.strays == []
    assert taken(found) == wanted


def test_numbered_folders_are_materials_and_folders_of_a_resolution_are_not():
    names = find_materials(
        [f"{folder}/{name}.png" for folder in ("001", "002") for name in ("albedo", "normal", "roughness")]
    )
    assert [found.folder for found in names.materials] == ["001", "002"]
    files = [f"w/{side}/{name}.png" for side in ("1k", "2k") for name in ("albedo", "normal", "roughness")]
    (found,) = find_materials(files).materials
    assert found.folder == "w" and found.takes["albedo"].files == ("w/2k/albedo.png", "w/1k/albedo.png")


def test_a_name_says_more_than_its_map():
    (reading,) = read_name("Tiles_NRM16_2K")
    assert (reading.role, reading.key, reading.depth, reading.resolution) == ("normal", "tiles", 16, 2048)
    assert read_name("aged-planks1_normal4-ogl")[0].convention == "opengl"
    assert read_name("Rock_Normal_DirectX")[0].convention == "directx"
    assert [reading.role for reading in read_name("Body_clearcoat_normal")] == ["other", "normal"]
    assert [reading.role for reading in read_name("Cave_AONormal")] == ["unclear", "normal"]
    assert read_name("IMG_2041") == []
