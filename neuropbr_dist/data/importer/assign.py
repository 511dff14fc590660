"""Assignment of files to maps of materials, by names alone: no file is opened.

Files of one folder and one name less its map's word are a material. What a name leaves open its neighbours
decide; what they leave open is refused with the reason, never guessed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from neuropbr_dist.materials.channels import MAP_NAMES, MapName
from neuropbr_dist.materials.names import Convention, Reading, Role, read_name

PICTURES = (".exr", ".tif", ".tiff", ".png", ".tga", ".bmp", ".webp", ".jpg", ".jpeg")
"""Suffixes of what is read; of one map in several formats the first is the best."""
NOT_READ = (".dds", ".ktx", ".ktx2", ".psd", ".psb", ".hdr", ".gif", ".avif", ".heic", ".jp2", ".jxl")
"""Suffixes of pictures that aren't."""
ARCHIVES = (".zip", ".7z", ".rar", ".sbsar", ".tar", ".gz")

GENERIC = re.compile(
    r"textures?|tex|maps?|images?|materials?|sources?|static|public|assets|png|jpe?g|exr|tiff?|tga|webp"
    r"|(?P<k>\d{1,2})k|(?P<side>16|32|64|128|256|512|1024|2048|4096|8192|16384)(x(?P=side))?",
    re.IGNORECASE,
)
"""Folders that don't name a material, at a path's end."""
_BASE = frozenset({"albedo", "alb", "albeido", "basecolor", "basecolour"})
_DIFFUSE = frozenset(
    {"diffuse", "diff", "dif", "diffusemap", "diffusecolor", "diffuseopacity", "diffusealpha", "d"}
)
"""Names of a diffuse map. Beside other colours it comes last, a base colour first: a specular workflow has both."""
_NEEDED: frozenset[Role] = frozenset({"albedo", "normal", "roughness", "gloss", "metallic", "packed"})


@dataclass(frozen=True)
class Take:
    """Origin of a map: files, a channel of them, and how to read it."""

    files: tuple[str, ...]
    """The same map in several resolutions or formats, the best by its name first."""
    channel: int | None = None
    """The channel of a packed picture; None: the whole picture."""
    inverted: bool = False
    """Gloss or smoothness: roughness is one less it."""
    convention: Convention | None = None
    """Convention of a normal map whose name says it."""

    def __str__(self) -> str:
        channel = "" if self.channel is None else ":" + "rgba"[self.channel]
        return ("~" if self.inverted else "") + self.files[0] + channel


@dataclass
class Found:
    """One material as its names show it: whole, or refused with a reason."""

    folder: str
    name: str
    """Common part of its files' names; may be empty."""
    takes: dict[MapName, Take] = field(default_factory=dict)
    """Albedo, normal and roughness, where it is whole; metallic unless it is 0 throughout."""
    specular: Take | None = None
    """A specular map beside a roughness map: it must not show metals where no metallic map does."""
    reason: str = ""
    """Reason for refusing it, '' where it is whole."""
    files: list[str] = field(default_factory=list)
    """All its files, the unused as well."""


@dataclass
class Names:
    """Materials and stray pictures in a list of files."""

    materials: list[Found] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    """Pictures that aren't understood, or that no material around them needs."""


@dataclass(frozen=True)
class _File:
    path: str
    reading: Reading

    def order(self) -> tuple:
        """Return a key that sorts the best first: resolution, bits, format."""
        suffix = PurePosixPath(self.path).suffix.lower()
        side = self.reading.resolution or _side_of_folder(self.path)
        return -side, -self.reading.depth, PICTURES.index(suffix), self.path


def find_materials(paths: Iterable[str]) -> Names:
    """Sort files into materials.

    Args:
        paths: relative to one folder, with `/`; files that are no pictures are passed over.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for path in sorted(paths):
        if PurePosixPath(path).suffix.lower() in PICTURES + NOT_READ:
            folders[_folder_of(path)].append(path)
    names = Names()
    for folder, files in folders.items():
        _sort_folder(folder, files, names)
    return names


def _sort_folder(folder: str, paths: Sequence[str], names: Names) -> None:
    readings = {path: read_name(PurePosixPath(path).stem) for path in paths}
    chosen = {path: _supported(path, readings) for path in paths if readings[path]}
    groups: dict[str, list[_File]] = defaultdict(list)
    for path, reading in chosen.items():
        groups[reading.key].append(_File(path, reading))
    unread = [path for path in paths if not readings[path]]
    lone = [file for files in groups.values() if not _is_material(files) for file in files]
    names.strays += [file.path for file in lone if file.reading.role in (*_NEEDED, "unclear")]
    for key, files in groups.items():
        if not _is_material(files):
            continue
        for part in _by_number(files):
            found = _judge(folder, part)
            _refuse_shared_metallic(found, lone)
            names.materials.append(found)
        # The picture that a store shows: it is called as the material is.
        unread = [path for path in unread if _key_of(path) not in (key, _key_of(folder))]
    names.strays += unread


def _is_material(files: Sequence[_File]) -> bool:
    return len({file.reading.role for file in files} & _NEEDED) > 1


def _refuse_shared_metallic(found: Found, lone: Sequence[_File]) -> None:
    """Refuse a material without a metallic map where a shared one may be its own.

    No metallic map means 0, but not beside `bishop_shared_metallic`, which may be that of `bishop_black` as well.
    """
    first = found.name.partition("_")[0].lower()
    related = [
        file.path
        for file in lone
        if file.reading.role in ("metallic", "packed")
        and file.reading.name.partition("_")[0].lower() == first
    ]
    if related and not found.reason and "metallic" not in found.takes:
        found.takes, found.reason = {}, f"no metallic of its own name, and {_names(related)} may be it"


def _supported(path: str, readings: Mapping[str, list[Reading]]) -> Reading:
    """Return the reading of a file that most of its neighbours share a material with, in other roles."""

    def support(reading: Reading) -> int:
        return sum(
            any(r.key == reading.key and r.role in _NEEDED and r.role != reading.role for r in others)
            for other, others in readings.items()
            if other != path
        )

    options = readings[path]
    return options[0] if len(options) == 1 else max(options, key=support)


def _by_number(files: list[_File]) -> list[list[_File]]:
    """Return several materials that differ by the number behind the word; one where only a map has variations."""
    numbers: dict[Role, set[int | None]] = defaultdict(set)
    for file in files:
        if file.reading.role in _NEEDED:
            numbers[file.reading.role].add(file.reading.number)
    sets = list(numbers.values())
    if len(sets) < 2 or len(sets[0]) < 2 or any(s != sets[0] for s in sets):
        return [files]
    return [[file for file in files if file.reading.number == number] for number in sorted(sets[0], key=str)]


def _judge(folder: str, files: list[_File]) -> Found:
    """Choose each map's file, or say why that can't be."""
    readable = [f for f in files if PurePosixPath(f.path).suffix.lower() in PICTURES]
    name = max((file.reading.name for file in files if file.reading.role in _NEEDED), key=len)
    found = Found(folder, name, files=sorted(file.path for file in files))
    try:
        found.takes, found.specular = _choose(readable)
    except _Unclear as error:
        found.reason = str(error)
        if len(readable) < len(files):
            unreadable = [f.path for f in files if f not in readable and f.reading.role in _NEEDED]
            found.reason += f"; of a format that isn't read: {_names(unreadable)}" if unreadable else ""
    return found


class _Unclear(Exception):
    """Raised with the reason for refusing a material."""


def _choose(files: Sequence[_File]) -> tuple[dict[MapName, Take], Take | None]:
    albedo, normal, packed = _colour(files), _one(files, "normal"), _one(files, "packed")
    if normal is None and packed and packed[0].reading.layout == "xxxr":
        normal = packed
    takes: dict[MapName, Take | None] = {
        "albedo": _take(albedo),
        "normal": _take(normal, convention=normal[0].reading.convention if normal else None),
        "roughness": _roughness(files, packed),
        "metallic": _metallic(files, packed),
    }
    specular = _one(files, "specular")
    _check_complete(takes, files, specular)
    whole = {name: takes[name] for name in MAP_NAMES if takes[name] is not None}
    unseen = specular if specular and takes["metallic"] is None else None
    return whole, _take(unseen)  # type: ignore[return-value]


def _check_complete(
    takes: Mapping[MapName, Take | None], files: Sequence[_File], specular: list[_File] | None
) -> None:
    missing = [name for name in ("albedo", "normal", "roughness") if takes[name] is None]  # type: ignore[index]
    may_hold = [file.path for file in files if file.reading.role == "unclear"]
    gloss_only = takes["roughness"] is None or takes["roughness"].inverted
    if specular and takes["metallic"] is None and gloss_only:
        raise _Unclear(
            f"a specular workflow ({_names([specular[0].path])}, no metallic map): its diffuse and specular "
            "colours can't be told apart into base colour and metal"
        )
    if may_hold and (missing or takes["metallic"] is None):
        raise _Unclear(
            f"no {' and no '.join(missing or ['metallic'])}, and {_names(may_hold)} may hold several maps: "
            "unpack it, or delete it where it isn't needed"
        )
    if missing:
        raise _Unclear(f"no {' and no '.join(missing)}")


def _colour(files: Sequence[_File]) -> list[_File] | None:
    """Return the base colour's files: words before letters, base colours before diffuse ones."""
    colours = [file for file in files if file.reading.role == "albedo"]
    words = [file for file in colours if len(file.reading.word) > 1]
    if not words:
        letters = {file.reading.word for file in colours}
        height = any(
            file.reading.word == "h" or file.reading.word.startswith(("height", "disp")) for file in files
        )
        if {"a", "c"} <= letters or ("d" in letters and len(letters) > 1 and height):
            raise _Unclear(f"{_names(f.path for f in colours)} may each be the base colour")
        words = [file for file in colours if file.reading.word != "d"] or colours
    best = min((_rank(file.reading.word) for file in words), default=0)
    return _one([file for file in words if _rank(file.reading.word) == best], "albedo", "base colour")


def _rank(word: str) -> int:
    return 0 if word in _BASE else 2 if word in _DIFFUSE else 1


def _roughness(files: Sequence[_File], packed: list[_File] | None) -> Take | None:
    if rough := _one(files, "roughness"):
        return _take(rough)
    for letter in "rs":
        if packed and letter in packed[0].reading.layout:
            return _take(packed, packed[0].reading.layout.index(letter), inverted=letter == "s")
    return _take(_one(files, "gloss"), inverted=True)


def _metallic(files: Sequence[_File], packed: list[_File] | None) -> Take | None:
    metals = [file for file in files if file.reading.role == "metallic"]
    letter_alone = bool(metals) and all(file.reading.word == "m" for file in metals)
    if letter_alone and (packed or not any(file.reading.role == "roughness" for file in files)):
        if packed is None:
            raise _Unclear(f"no roughness, and {_names(f.path for f in metals)} may be metallic or a mask")
        metals = []
    metal = _one(metals, "metallic")
    if metal is None and packed and "m" in packed[0].reading.layout:
        return _take(packed, packed[0].reading.layout.index("m"))
    return _take(metal)


def _one(files: Sequence[_File], role: Role, what: str = "") -> list[_File] | None:
    """Return the files of a role, one map in all its resolutions and formats, the best first.

    None where there are none.
    """
    files = [file for file in files if file.reading.role == role]
    if not files:
        return None
    files = [file for file in files if len(file.reading.word) > 1] or files
    for convention in ("opengl", "directx"):
        if marked := [file for file in files if file.reading.convention == convention]:
            files = marked
            break
    number = min((file.reading.number for file in files), key=lambda n: -1 if n is None else n)
    files = [file for file in files if file.reading.number == number]
    spelt = {(file.reading.word, file.reading.layout) for file in files}
    if len(spelt) > 1:
        raise _Unclear(f"{_names(f.path for f in files)} may each be the {what or role}")
    return sorted(files, key=_File.order)


def _take(
    files: list[_File] | None,
    channel: int | None = None,
    inverted: bool = False,
    convention: Convention | None = None,
) -> Take | None:
    return Take(tuple(file.path for file in files), channel, inverted, convention) if files else None


def _folder_of(path: str) -> str:
    """Return the folder that names a file's material: less `textures`, `4k`, `png` and the like at the end."""
    parts = list(PurePosixPath(path).parts[:-1])
    while parts and GENERIC.fullmatch(parts[-1]):
        parts.pop()
    return "/".join(parts)


def _side_of_folder(path: str) -> int:
    for part in reversed(PurePosixPath(path).parts[:-1]):
        found = GENERIC.fullmatch(part)
        if found is None:
            break
        if found["k"] or found["side"]:
            return 1024 * int(found["k"]) if found["k"] else int(found["side"])
    return 0


def _key_of(path: str) -> str:
    return re.sub(r"[\W_]", "", PurePosixPath(path).stem).lower()


def _names(paths: Iterable[str]) -> str:
    return ", ".join(PurePosixPath(path).name for path in paths)
