"""Names of maps in other people's packs: what a file's name can mean.

The words are those of ambientCG, Poly Haven, Blender's Node Wrangler, Substance, Quixel, Poliigon, glTF,
Unreal, Unity, Godot, s&box and the cleaner of upstream NeuroPBR. A name is read from its end: behind the
word for the map may only stand its resolution, format, depth, colour space, level of detail or number.
Where a name can be read in several ways all are returned; which one holds, its neighbours decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Role = Literal["albedo", "normal", "roughness", "gloss", "metallic", "specular", "packed", "other", "unclear"]
"""`packed` holds several maps in its channels, `other` none that is needed, `unclear` one of several things."""
Convention = Literal["opengl", "directx"]
"""Direction of a normal map's green: to the top of the picture, or to its bottom."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WORDS: dict[Role, str] = {
    "albedo": """albedo alb albeido basecolor basecolour basecol basemap base bc diffuse diff dif color colour
        col clr colormap colourmap diffusemap albedomap basecolormap albedotransparency albedoopacity albedoalpha
        basecoloropacity basecolortransparency basecoloralpha diffuseopacity diffusealpha albedoheight albht
        diffusecolor difcol""",
    "normal": "normal normals nrm nrml nml nor norm norms normalmap normalsmap nm ddn",
    "roughness": "roughness rough rgh roughnessmap rness specularroughness",
    "gloss": "gloss glossiness glossy glossmap smoothness smooth smoothnessmap gls",
    "metallic": "metallic metalness metal metalic metallicity met mtl mt mtlc metallicmap metalnessmap",
    "specular": "specular specularity spec spc specularmap reflection refl specularlevel speclevel specularcolor",
    "other": """ao ambientocclusion ambient occlusion occ aomap mixedao height heightmap heigth disp displacement
        displacementmap displace dsp bump bmp bumpmap depth dp ht opacity opacitymap alpha alphamap transparency
        transparent mask emissive emission emissionmap emit glow selfillum illum light cavity cav curvature curv
        translucency transmission thickness sss subsurface scattering id idmap flow anisotropy anisotropic sheen
        clearcoat fuzz ior parallax pom preview thumbnail thumb sphere cube flat render icon cover screenshot""",
    "unclear": "mr rm",
}
LETTERS: dict[str, Role] = {
    "a": "albedo",
    "c": "albedo",
    "d": "albedo",
    "n": "normal",
    "r": "roughness",
    "m": "metallic",
    "s": "specular",
    "g": "unclear",
    **dict.fromkeys("behot", "other"),
}
"""A single letter at the end says little; what it means, its neighbours decide: `d` beside `a` is no diffuse."""
LAYOUTS: dict[str, str] = {
    # Unreal, Poly Haven's arm, and what Substance writes for glTF.
    "orm": """orm arm aorm ormh occlusionroughnessmetallic occlusionroughnessmetalness occlusionroughmetal
        occroughmetal aoroughmetal aoroughnessmetallic aoroughnessmetalness occlusionmetallicroughness""",
    "rmo": "rma rmo rmao roughnessmetallicao roughmetalao rmac rmc",
    "mro": "mra mro mrao metallicroughnessao metalroughao",
    # glTF 2.0, section 3.9.2: roughness in green, metalness in blue.
    "xrm": """metallicroughness metalroughness metalnessroughness metalrough metallicrough
        metallicroughnesstexture""",
    "mxxs": "maskmap mads metallicsmoothness metalsmoothness metalnesssmoothness metallicgloss metallicglossmap",
    "mxr": "mer",  # Minecraft: metalness, emissive, roughness
    "xxxr": "nrmrgh normalroughness",  # Godot's terrains: roughness in the normal map's alpha
}
"""Layouts of packed pictures, what lies in red, green, blue and alpha: r roughness, m metallic, s
smoothness, o and x nothing that is needed."""
NORMAL_TOO = frozenset({"xxxr"})
"""Layouts whose red, green and blue are the normals."""
STRONG = _words(
    """albedo basecolor basecolour diffuse normal normals normalmap roughness metallic metalness smoothness
    glossiness specular ao occlusion ambientocclusion displacement curvature emissive opacity transparency
    height"""
)
"""Words that no material is called by: at a name's beginning they are the map, beside another word a packing."""
QUALIFIERS = _words("clearcoat coat sheen detail bent world object transmission micro macro flow")
"""`clearcoat_normal` is not the normal map."""
CONVENTIONS: dict[str, Convention] = {
    "gl": "opengl",
    "ogl": "opengl",
    "opengl": "opengl",
    "dx": "directx",
    "directx": "directx",
}
WORKFLOWS = _words("metalness metallic specular")
"""Poliigon's last word: of which workflow the whole set is."""
_CONVENTION_TAIL = re.compile(r"(normals?|norm|nor|nrm|nm|n)(gl|ogl|opengl|dx|directx)")
_DECORATION = re.compile(
    r"png|jpe?g|tiff?|exr|tga|webp|raw|s?rgb|lin|linear|acescg|noncolor|(8|16|32)bits?|lod\d?|v\d{1,3}|var\d{0,2}"
    r"|maps?|textures?|tex|tile|seamless|tangent"
)
_RESOLUTION = re.compile(r"(\d{1,2})k|(\d{3,5})(x\d{3,5})?")
_SIDES = {2**power for power in range(5, 15)}
_TOKEN = re.compile(r"[A-Z]+(?![^\W\dA-Z_])|[A-Z]?[^\W\dA-Z_]+|\d+")
_LONGEST = 4  # tokens in a word: ambient occlusion roughness metallic

_MEANINGS: dict[str, tuple[Role, str]] = {
    word: (role, "") for role, words in WORDS.items() for word in words.split()
} | {word: ("packed", layout) for layout, words in LAYOUTS.items() for word in words.split()}


@dataclass(frozen=True)
class Reading:
    """One way to read the name of a file."""

    role: Role
    name: str
    """Rest of the name that stands for the material, its parts joined by `_`."""
    word: str
    """Part of the name that stands for the map, likewise."""
    layout: str = ""
    """Contents of a packed picture's channels, see `LAYOUTS`."""
    convention: Convention | None = None
    """Direction of green, if the name says so."""
    number: int | None = None
    """The number behind the word: a variation, or one of several materials."""
    resolution: int = 0
    """Side in pixels that the name gives, 0 where it doesn't."""
    depth: int = 0
    """Bits a value that the name gives, 0 where it doesn't."""

    @property
    def key(self) -> str:
        """The name in lower case without separators: maps of one material have it in common."""
        return self.name.replace("_", "").lower()


class _Token(NamedTuple):
    text: str
    """The text in lower case."""
    original: str
    separated: bool
    """Whether a separator or nothing stands before it: `Rock_N`, not `RockN`."""


def read_name(stem: str) -> list[Reading]:
    """Return the ways to read a file's name (without its suffix), the likeliest first; none where nothing is known.

    >>> [(reading.role, reading.key) for reading in read_name("Metal014_4K-PNG_Roughness")]
    [('roughness', 'metal014')]
    """
    tokens = [
        _Token(part[0].lower(), part[0], part.start() == 0 or not stem[part.start() - 1].isalnum())
        for part in _TOKEN.finditer(stem)
    ]
    found = list(_from_the_end(tokens)) or list(_from_the_front(tokens))
    behind_workflow = _without_workflow(tokens)
    return found + (list(_from_the_end(behind_workflow)) if behind_workflow else [])


def _from_the_end(tokens: Sequence[_Token]) -> Iterator[Reading]:
    """Yield readings whose word ends the name, but for decorations behind it."""
    marks = Reading("other", "", "")
    while tokens:
        found = list(_endings(tokens, marks))
        if found:
            yield from found
            return
        count, marks = _decoration(tokens, marks)
        if not count:
            return
        tokens = tokens[:-count]


def _endings(tokens: Sequence[_Token], marks: Reading) -> Iterator[Reading]:
    """Yield readings whose word is the very end, the longest word first; before them that of a packing not known."""
    longest = True
    for count in range(min(_LONGEST, len(tokens)), 0, -1):
        word, rest = _joined(tokens[-count:]), tokens[:-count]
        meaning = _meaning(word, tokens[-count].separated and bool(rest))
        if meaning is None:
            continue
        role, layout, convention = meaning
        name, resolution = _name(rest)
        reading = replace(
            marks, role=role, name=name, word=word, layout=layout,
            convention=convention or marks.convention, resolution=marks.resolution or resolution,
        )  # fmt: skip
        before = rest[-1].text if rest else ""
        if longest and (before in QUALIFIERS or (before in STRONG and word in STRONG)):
            hidden: Role = "other" if before in QUALIFIERS else "unclear"
            yield replace(reading, role=hidden, name=_name(rest[:-1])[0])
        yield reading
        longest = False


def _from_the_front(tokens: Sequence[_Token]) -> Iterator[Reading]:
    """Yield the reading of Quixel's `Albedo_2K_LOD4_welhfhldw`: the word first, the asset's name last."""
    for count in range(min(_LONGEST, len(tokens)), 0, -1):
        word = _joined(tokens[:count])
        if word in STRONG:
            role, layout = _MEANINGS[word]
            rest, resolution = list(tokens[count:]), 0
            for length in (2, 1):  # what stands between: a resolution, a level of detail
                while rest and (known := _known_decoration(_joined(rest[:length]))) is not None:
                    rest, resolution = rest[length:], resolution or known
            yield Reading(role, _spelt(rest), word, layout, resolution=resolution)
            return


def _without_workflow(tokens: Sequence[_Token]) -> Sequence[_Token]:
    """Return the name less the workflow that Poliigon puts behind the resolution; nothing for other names."""
    if len(tokens) > 3 and tokens[-1].text in WORKFLOWS and _RESOLUTION.fullmatch(_joined(tokens[-3:-1])):
        return tokens[:-1]
    return []


def _meaning(word: str, letters: bool) -> tuple[Role, str, Convention | None] | None:
    marked = _CONVENTION_TAIL.fullmatch(word)
    if marked and (letters or marked[1] != "n"):
        return "normal", "", CONVENTIONS[marked[2]]
    if len(word) == 1:
        role = LETTERS.get(word) if letters else None
        return (role, "", None) if role else None
    found = _MEANINGS.get(word)
    return (*found, None) if found else None


def _decoration(tokens: Sequence[_Token], marks: Reading) -> tuple[int, Reading]:
    """Return how many tokens at the end are a decoration, 0 for none, and what they tell."""
    for count in (3, 2, 1):
        text = _joined(tokens[-count:])
        if count > len(tokens):
            continue
        if text in CONVENTIONS:
            return count, replace(marks, convention=CONVENTIONS[text])
        if count == 1 and text in ("8", "16", "32") and not tokens[-1].separated:
            return count, replace(marks, depth=int(text))
        known = _known_decoration(text)
        if known is not None:
            return count, replace(marks, resolution=known or marks.resolution)
        if count == 1 and text.isdigit():
            return count, replace(marks, number=int(text))
    return 0, marks


def _known_decoration(text: str) -> int | None:
    """Return the resolution that a decoration gives, 0 for one that gives none, None for anything else."""
    found = _RESOLUTION.fullmatch(text)
    if found and found[1]:
        return 1024 * int(found[1])
    if found and int(found[2]) in _SIDES:
        return int(found[2])
    return 0 if _DECORATION.fullmatch(text) else None


def _name(tokens: Sequence[_Token]) -> tuple[str, int]:
    """Return what names the material, without the resolution and the format behind it, and that resolution."""
    resolution = 0
    while tokens:
        for count in (3, 2, 1):
            known = _known_decoration(_joined(tokens[-count:])) if count < len(tokens) else None
            if known is not None:
                tokens, resolution = tokens[:-count], known or resolution
                break
        else:
            break
    return _spelt(tokens), resolution


def _joined(tokens: Sequence[_Token]) -> str:
    return "".join(token.text for token in tokens)


def _spelt(tokens: Sequence[_Token]) -> str:
    return "".join(("_" if token.separated else "") + token.original for token in tokens).strip("_")
