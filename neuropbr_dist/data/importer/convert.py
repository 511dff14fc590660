"""Pictures as they came -> the four maps, each what its name says: roughness, not gloss; normals OpenGL and unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from neuropbr_dist.data.files.picture_check import (
    NON_UNIT_SHARE,
    looks_like_normals,
    non_unit_share,
    normals_fault,
)
from neuropbr_dist.data.importer.assign import Take
from neuropbr_dist.data.importer.normals import judge_convention
from neuropbr_dist.data.importer.squares import as_bits, full_scale, normalised, squared, unsigned
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.channels import (
    MapName,
    decode,
    decode_normals,
    encode_normals,
    linear_to_srgb,
    srgb_to_linear,
)
from neuropbr_dist.materials.conventions import as_srgb, turned_over
from neuropbr_dist.materials.names import Convention

CHANNELS = ("red", "green", "blue", "alpha")
COLOUR_SLACK = 1 / 16
"""A map of one value a pixel may differ so much between its channels: JPEG does that."""
COLOURED_SHARE = 0.01
"""Share of pixels with more above which it is another map, or several in one."""
SAMPLE = 512
"""Side in pixels of what is looked at to see what a picture is."""
METAL_SPECULAR, METAL_DIFFUSE = 0.25, 0.04
"""Linear: a specular map brighter than the first where the diffuse is darker than the second shows a metal."""


@dataclass(frozen=True)
class Options:
    """Wishes that the user may have."""

    size: int | None = None
    """Side in pixels; None: the pictures' own."""
    bits: int = 8
    """8 or 16."""
    normals: Convention | None = None
    """The convention of normal maps that don't tell it themselves."""
    tiles: bool = False
    """Each whole square of a picture that isn't one is a material, not the middle one alone."""
    flip_green: bool = False
    """Turn green over: renders were lit as if it pointed down. See `materials.conventions`."""
    linear_albedo: bool = False
    """Encode albedo as sRGB: renders took its values for linear light."""


@dataclass
class Maps:
    """One material, converted."""

    pixels: dict[MapName, np.ndarray]
    """uint8 or uint16: (S, S, 3) albedo and normal, (S, S) roughness and metallic."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the table: what was done and why."""


def convert(
    takes: Mapping[MapName, Take], specular: Take | None, read: Callable[[str], np.ndarray], options: Options
) -> list[Maps]:
    """Read a material's files and make its maps: one set, or one for each tile.

    Args:
        takes: albedo, normal and roughness, perhaps metallic (else 0); the first file of each is read.
        specular: a map that must not show metals.
        read: gives a file's values, as `read_picture` does.

    Raises:
        UserError: A file can't be read, or isn't the map that its name says; or the normals' convention can't
            be told. One line with the reason.
    """
    pictures = {file: read(file) for file in dict.fromkeys(take.files[0] for take in takes.values())}
    notes: list[str] = []
    planes: dict[MapName, np.ndarray] = {}
    for name, take in takes.items():
        planes[name] = _planes(name, take, pictures[take.files[0]], notes)
    del pictures
    planes["normal"] = _opengl(planes["normal"], takes["normal"], options.normals, notes)
    if specular is not None:
        _check_no_metals(read(specular.files[0]), planes["albedo"], specular)
    if "metallic" not in planes:
        planes["metallic"] = np.zeros_like(planes["roughness"])
        notes.append("metallic 0: no map")
    if looks_like_normals(_sample(planes["albedo"])):
        raise UserError(f"{takes['albedo'].files[0]}: holds unit normals; swapped with the normal map?")
    if options.flip_green:
        planes["normal"] = planes["normal"].copy()
        planes["normal"][..., 1] = turned_over(planes["normal"][..., 1])
        notes.append("green turned over, as renders are lit")
    if options.linear_albedo:
        planes["albedo"] = as_srgb(planes["albedo"])
        notes.append("albedo encoded as sRGB, as renders take it")
    squares = squared(planes, options.size, options.bits, options.tiles)
    return [Maps(maps, notes + more) for maps, more in squares]


def _planes(name: MapName, take: Take, picture: np.ndarray, notes: list[str]) -> np.ndarray:
    """Return a map's values, (H, W, 3) or (H, W), in the file's own type; floats in 0 .. 1."""
    channels = picture.shape[-1]
    if take.channel is not None:
        if take.channel >= (channels if channels > 2 else 0):
            raise UserError(f"{take.files[0]}: has no {CHANNELS[take.channel]} channel for {name}")
        values = picture[..., take.channel]
    elif name in ("albedo", "normal"):
        return _colours(name, take, picture, notes)
    else:
        values = _gray(name, take, picture)
    if values.dtype.kind == "f":
        values = values.clip(0, 1)
    if take.inverted:
        notes.append("roughness is one less gloss")
        values = full_scale(values) - values
    return values


def _colours(name: MapName, take: Take, picture: np.ndarray, notes: list[str]) -> np.ndarray:
    channels = picture.shape[-1]
    if channels in (2, 4):
        if name == "albedo" and picture[..., -1].min() < full_scale(picture):
            notes.append("albedo: alpha not kept")
        picture = picture[..., :-1]
    if name == "albedo":
        if picture.dtype.kind == "f":
            notes.append("albedo: floats are linear, encoded as sRGB")
            picture = linear_to_srgb(picture.clip(0, 1)).astype(np.float32)
        return np.broadcast_to(picture, (*picture.shape[:2], 3)) if picture.shape[-1] == 1 else picture
    if picture.shape[-1] != 3:
        raise UserError(f"{take.files[0]}: a gray picture; a normal map has X, Y and Z in R, G and B")
    if picture.dtype.kind == "f" and picture.min() < -0.01:
        notes.append("normals: floats from -1 to 1")
        picture = encode_normals(picture)
    return picture.clip(0, 1) if picture.dtype.kind == "f" else picture


def _gray(name: MapName, take: Take, picture: np.ndarray) -> np.ndarray:
    """Return the one value a pixel of a map that is stored as gray, or as equal red, green and blue."""
    if picture.shape[-1] < 3:
        return picture[..., 0]
    red, green, blue = (picture[..., i] for i in range(3))
    apart = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    coloured = float((apart > COLOUR_SLACK * full_scale(picture)).mean())
    if coloured > COLOURED_SHARE:
        raise UserError(
            f"{take.files[0]}: has colour in {coloured:.0%} of its pixels; a {name} map has one value a pixel "
            "(several maps in one picture?)"
        )
    return green


def _opengl(normals: np.ndarray, take: Take, asked: Convention | None, notes: list[str]) -> np.ndarray:
    """Return unit normals whose green points to the top of the picture."""
    normals = _unit(normals, take, notes)
    evidence = judge_convention(normals)
    told, found = evidence.convention, take.convention
    if found and told and found != told:
        raise UserError(
            f"{take.files[0]}: {_name_of(found)} by its name, {_name_of(told)} by its slopes "
            f"(correlation {evidence.correlation:+.2f}); rename it after which it is"
        )
    if found:
        notes.append(f"normals {_name_of(found)} by name")
    elif told:
        notes.append(f"normals {_name_of(told)} by slopes ({evidence.correlation:+.2f})")
        found = told
    elif evidence.flat:
        notes.append("normals flat up and down: either convention")
        found = "opengl"
    elif asked:
        notes.append(f"normals {_name_of(asked)} as told (slopes {evidence.correlation:+.2f})")
        found = asked
    else:
        raise UserError(
            f"{take.files[0]}: OpenGL or DirectX, neither its name nor its slopes tell (correlation "
            f"{evidence.correlation:+.2f}); --normals opengl or directx says it for all such maps"
        )
    if found == "directx":
        normals = normals.copy()
        normals[..., 1] = full_scale(normals) - normals[..., 1]
        notes[-1] += ", green turned over"
    return normals


def _unit(normals: np.ndarray, take: Take, notes: list[str]) -> np.ndarray:
    """Return the normals as they are where most are unit; else made so, where they can be normals at all."""
    sample = _sample(normals)
    not_unit = non_unit_share(sample) > NON_UNIT_SHARE
    without_z = np.ptp(sample[2]) == 0 and np.ptp(sample[0]) > 0
    if without_z and (not_unit or sample[2, 0, 0] < 128):  # blue is unused: 0, or white
        x, y = (decode_normals(unsigned(normals[..., i])) for i in range(2))
        z = np.sqrt(np.maximum(1 - x * x - y * y, 0))
        notes.append("normals: Z from X and Y")
        normals = encode_normals(np.stack([x, y, z], axis=-1))
    elif not_unit:
        notes.append("normals made unit")
        normals = normalised(unsigned(normals))
    fault = normals_fault(_sample(normals))
    if fault:
        raise UserError(f"{take.files[0]}: {fault}")
    return normals


def _sample(colours: np.ndarray) -> np.ndarray:
    """Return pixels enough to see what a picture is: uint8 (3, h, w)."""
    step = max(1, min(colours.shape[:2]) // SAMPLE)
    return as_bits(colours[::step, ::step], 8).transpose(2, 0, 1)


def _check_no_metals(specular: np.ndarray, albedo: np.ndarray, take: Take) -> None:
    """Raise a UserError for a specular map that shows metals, which have no metallic map.

    A specular map of a dielectric is dim, or only dims; where diffuse is black and it is bright there is metal.
    """
    small = [np.asarray(Image.fromarray(as_bits(p, 8).squeeze()).convert("L").resize((256, 256), Image.Resampling.BOX))
             for p in (specular[..., : 3 if specular.shape[-1] > 2 else 1], albedo)]  # fmt: skip
    bright, dark = (srgb_to_linear(decode(plane.astype(np.float32))) for plane in small)
    share = float(((bright > METAL_SPECULAR) & (dark < METAL_DIFFUSE)).mean())
    if share > COLOURED_SHARE:
        raise UserError(
            f"{take.files[0]}: bright where the colour is black in {share:.0%} of the picture: a specular workflow, "
            "whose metals have no metallic map"
        )


def _name_of(convention: Convention) -> str:
    return "OpenGL" if convention == "opengl" else "DirectX"
