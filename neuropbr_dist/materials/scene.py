"""A scene: three cameras, the light of each view, dirt and the sensor. Drawn on the host, handed on as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from neuropbr_dist.materials.cameras import Camera, direction, random_cameras, wide_cameras
from neuropbr_dist.materials.dirt import (
    FAITHFUL,
    SCRATCHES,
    SMUDGES,
    STROKES,
    Dirt,
    Response,
    fair_response,
    poor_response,
    random_dirt,
)
from neuropbr_dist.materials.families import random_stream
from neuropbr_dist.materials.lights import (
    LAMP,
    LAMPS,
    WINDOWS,
    Lamp,
    Lighting,
    random_lighting,
    tint,
    wide_lighting,
)
from neuropbr_dist.materials.surroundings import GRADIENT, HARMONICS, WINDOW

BENCH, OTHER_LIGHT, NEAR_LAMP, SURROUNDINGS = 1 / 4, 1 / 3, 1 / 3, 1 / 2
"""Shares of samples: as on the built-in set's bench (unless another is asked for), all else being for the others; with another light in each view;
with a lamp near the camera; with a picture of surroundings, where there are any."""

_LAYOUT = {
    "lamps": (LAMPS, LAMP),
    "gradient": (GRADIENT, 3),
    "windows": (WINDOWS, WINDOW),
    "irradiance": (3, HARMONICS),
    "environment": (4,),
    "legacy": (1,),
    "exposure": (1,),
    "gain": (3,),
    "noise": (2,),
    "strokes": (STROKES, 5),
    "penumbra": (1,),
    "smudges": (SMUDGES, 5),
    "scratches": (SCRATCHES, 6),
    "shift": (2,),
}
SCENE = sum(math.prod(shape) for shape in _LAYOUT.values())
"""Numbers of one view's encoded scene; zeros are a lamp, a window, dirt that isn't there."""


@dataclass(frozen=True)
class Scene:
    """Surroundings of a material, and the cameras that look at it."""

    cameras: tuple[Camera, ...]
    """Three cameras, one a view."""
    lighting: tuple[Lighting, ...]
    """One lighting a view, often the same."""
    response: Response = FAITHFUL
    dirt: Dirt | None = None


@dataclass(frozen=True)
class EncodedScene:
    """The numbers of encoded scenes, by name; ... are the scenes' own dimensions."""

    lamps: Tensor
    """(..., 3, 7) see `lights.Lamp`; the first is the key lamp."""
    gradient: Tensor
    """(..., 3, 3) see `surroundings`."""
    windows: Tensor
    """(..., 7, 11) see `surroundings`."""
    irradiance: Tensor
    """(..., 3, 9) the sky's, see `surroundings`."""
    environment: Tensor
    """(..., 4) which picture, cosine and sine of its turn, strength."""
    legacy: Tensor
    """(..., 1) 1 for light that is shaded as the first built-in set was, else 0."""
    exposure: Tensor
    """(..., 1) factor from radiance to linear values, before dirt."""
    gain: Tensor
    """(..., 3) the sensor's, after dirt."""
    noise: Tensor
    """(..., 2) variance per linear value, and in the dark."""
    strokes: Tensor
    """(..., 7, 5) of the shadow's caster, see `dirt`."""
    penumbra: Tensor
    """(..., 1) half the width of the shadow's edge."""
    smudges: Tensor
    """(..., 3, 5) see `dirt`."""
    scratches: Tensor
    """(..., 6, 6) see `dirt`."""
    shift: Tensor
    """(..., 2) how far the lens's marks are moved."""

    def without_absent(self, lamps: int, windows: int) -> EncodedScene:
        """Return the scenes with room for this many lamps and windows: shading takes time for absent ones, too."""
        return replace(
            self, lamps=self.lamps[..., : max(lamps, 1), :], windows=self.windows[..., :windows, :]
        )


def builtin_scene(seed: int, index: int, *, dirty: bool) -> Scene:
    """Return the scene of built-in sample (seed, index). Clean and dirty views share cameras and light.

    Raises:
        UserError: seed or index is negative.
    """
    rng = random_stream(seed, index, 1)
    cameras, lighting = random_cameras(rng), random_lighting(rng)
    scene = Scene(tuple(cameras), (lighting,) * 3)
    if not dirty:
        return scene
    rng = random_stream(seed, index, 2)
    return replace(scene, dirt=random_dirt(rng), response=poor_response(rng))


def random_scene(
    rng: np.random.Generator, *, dirty: bool = False, environments: int = 0, bench: float = BENCH
) -> Scene:
    """Return a scene to be rendered once: now and then one of the built-in set's, else more of everything than that has.

    Args:
        dirty: with a shadow, a smudged and scratched lens, a sensor that is well off and noisy.
        environments: how many pictures of surroundings there are to choose from.
        bench: share of the built-in set's.
    """
    if rng.random() < bench:
        cameras, lighting = tuple(random_cameras(rng)), [random_lighting(rng)] * 3
    else:
        cameras, lighting = _anywhere(rng, dirty, environments)
    dirt = random_dirt(rng) if dirty else None
    return Scene(cameras, tuple(lighting), poor_response(rng) if dirty else fair_response(rng), dirt)


def _anywhere(
    rng: np.random.Generator, dirty: bool, environments: int
) -> tuple[tuple[Camera, ...], list[Lighting]]:
    """Return cameras as people hold them, and light of many kinds, one a view."""
    cameras = tuple(wide_cameras(rng))
    each, near, around = (rng.random() < share for share in (OTHER_LIGHT, NEAR_LAMP, SURROUNDINGS))
    drawn = [wide_lighting(rng, environments if around else 0, least=dirty) for _ in range(3 if each else 1)]
    lighting = drawn * (3 // len(drawn))
    if near:
        lighting = [
            _with_lamp_near(rng, light, camera) for light, camera in zip(lighting, cameras, strict=True)
        ]
    return cameras, lighting


def _with_lamp_near(rng: np.random.Generator, lighting: Lighting, camera: Camera) -> Lighting:
    """Return the light with a lamp beside the camera, as a phone's, that outshines the rest by 0.4 to 3."""
    beside = camera.position + rng.uniform(0.02, 0.25) * direction(np.pi / 2, rng.uniform(0, 2 * np.pi))
    share, distance = np.exp(rng.uniform(np.log(0.4), np.log(3))), np.linalg.norm(beside - camera.target)
    facing = beside[2] / distance
    intensity = np.pi * share * distance**2 / facing * tint(rng, 0.08)
    lamp = Lamp(beside, intensity, rng.uniform(0.005, 0.08))
    return replace(lighting, lamps=(*lighting.lamps, lamp), exposure=lighting.exposure_with(share))


def encode_scene(scene: Scene) -> npt.NDArray[np.float32]:
    """Return the numbers of a scene, (3, `SCENE`), a row a view."""
    return np.stack([_encode_view(scene, view) for view in range(len(scene.lighting))])


def _encode_view(scene: Scene, view: int) -> npt.NDArray[np.float32]:
    light, response = scene.lighting[view], scene.response
    gradient, windows = light.sky.numbers()
    found: dict[str, npt.ArrayLike] = {
        "lamps": [lamp.numbers() for lamp in light.lamps],
        "gradient": gradient,
        "windows": windows,
        "irradiance": light.sky.irradiance,
        "legacy": [light.legacy],
        "exposure": [light.exposure],
        "gain": response.gain[view],
        "noise": [response.shot, response.read],
    }
    if around := light.environment:
        found["environment"] = [around.index, np.cos(around.turn), np.sin(around.turn), around.strength]
    if dirt := scene.dirt:
        key = light.lamps[0].radius if light.lamps else 0.0
        found |= {name: getattr(dirt, name) for name in ("strokes", "smudges", "scratches")}
        found |= {"penumbra": [key * dirt.height / (1 - dirt.height)], "shift": dirt.shift[view]}
    return np.concatenate([_filled(found.get(name, ()), shape).ravel() for name, shape in _LAYOUT.items()])


def _filled(rows: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return rows, and zeros for those that aren't there."""
    found, rows = np.zeros(shape, np.float32), np.asarray(rows, np.float32)
    if rows.size:
        found[: len(rows)] = rows
    return found


def decode_scene(scenes: Tensor) -> EncodedScene:
    """Return encoded scenes (..., `SCENE`) by name."""
    parts = scenes.split([math.prod(shape) for shape in _LAYOUT.values()], dim=-1)
    shaped = [part.unflatten(-1, shape) for part, shape in zip(parts, _LAYOUT.values(), strict=True)]
    return EncodedScene(**dict(zip(_LAYOUT, shaped, strict=True)))


assert list(_LAYOUT) == [field.name for field in fields(EncodedScene)]
