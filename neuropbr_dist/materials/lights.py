"""Light on a material: lamps, a sky with windows, a picture of real surroundings. Drawn on the host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from neuropbr_dist.materials.cameras import cross, direction, unit
from neuropbr_dist.materials.noise import Array
from neuropbr_dist.materials.surroundings import WINDOW, irradiance_from_above, sky_irradiance

LAMPS, WINDOWS = 3, 7
"""Most lamps and windows of a scene."""
LAMP = 7
"""Numbers of a lamp."""


@dataclass(frozen=True)
class Lamp:
    """A small round light."""

    position: Array
    """(3,)."""
    intensity: Array
    """(3,) radiant intensity: irradiance is intensity * cos / distance^2."""
    radius: float = 0.0
    """Half its width; widens highlights and softens shadows."""

    def numbers(self) -> tuple[float, ...]:
        """Return the `LAMP` numbers that shading asks for."""
        return (*self.position, *self.intensity, self.radius)

    def irradiance(self) -> float:
        """Return the mean irradiance in the plane's middle."""
        return float(np.mean(self.intensity) * self.position[2] / np.linalg.norm(self.position) ** 3)


@dataclass(frozen=True)
class Window:
    """A bright rectangle on the sky."""

    centre: Array
    """(3,) unit direction."""
    across: Array
    """(3,) unit vector along its width, at right angles to `centre`."""
    half_width: float
    """Sine of half the angle it spans."""
    half_height: float
    """The same along the other axis."""
    radiance: Array
    """(3,)."""


@dataclass(frozen=True)
class Sky:
    """The surroundings at infinity: a gradient, brighter on one side, and some windows."""

    zenith: Array
    """(3,) radiance straight above the surface."""
    horizon: Array
    """(3,) radiance along the surface."""
    lean: Array
    """(3,) direction of the brighter side, shorter than 1: light grows by its inner product with the direction."""
    windows: tuple[Window, ...] = ()

    def numbers(self) -> tuple[Array, Array]:
        """Return float64 (3, 3) and (`WINDOWS`, 11) as `surroundings` has them.

        Raises:
            ValueError: there are more than `WINDOWS` windows.
        """
        windows = np.zeros((WINDOWS, WINDOW))
        for row, window in zip(windows[: len(self.windows)], self.windows, strict=True):
            row[:] = *window.centre, *window.across, window.half_width, window.half_height, *window.radiance
        return np.stack([self.zenith, self.horizon, self.lean]), windows

    def brightened(self, factor: float) -> Sky:
        """Return the sky with this many times its light."""
        windows = tuple(replace(window, radiance=window.radiance * factor) for window in self.windows)
        sky = Sky(self.zenith * factor, self.horizon * factor, self.lean, windows)
        sky.__dict__["irradiance"] = self.irradiance * factor  # what takes milliseconds is done once
        return sky

    @cached_property
    def irradiance(self) -> Array:
        """Float64 (3, 9), see `surroundings.sky_irradiance`."""
        gradient, windows = map(torch.from_numpy, self.numbers())
        return sky_irradiance(gradient, windows[: len(self.windows)]).numpy()

    def irradiance_from_above(self) -> Array:
        """Return the irradiance (3,) of a plane that faces +Z."""
        return irradiance_from_above(self.irradiance)


@dataclass(frozen=True)
class Environment:
    """A picture of surroundings, see `environment.py`; its irradiance on the plane is pi at strength 1."""

    index: int
    """Which of the run's pictures, from 0."""
    turn: float = 0.0
    """About the plane's normal, radians."""
    strength: float = 1.0


@dataclass(frozen=True)
class Lighting:
    """All light on the surface. The first lamp is the key lamp, which casts the dirty views' shadow."""

    lamps: tuple[Lamp, ...]
    sky: Sky
    exposure: float = 1.0
    """Factor from radiance to the picture's linear value."""
    environment: Environment | None = None
    """Adds to the sky, which is usually dark then."""
    legacy: bool = False
    """Shaded as the first built-in set was, so that this set and the bench stay what they were: wide lamps' highlights
    are too dim on smooth surfaces, the sky's reflections too sharp on rough ones, metals reflect the sky too little."""

    def exposure_with(self, share: float) -> float:
        """Return the exposure with a lamp more, whose irradiance on the plane is `share` times pi."""
        around = self.sky.irradiance_from_above().mean() / np.pi
        around += self.environment.strength if self.environment else 0.0
        lamps = sum(float(lamp.irradiance()) for lamp in self.lamps) / np.pi
        return self.exposure * (around + lamps) / (around + lamps + share)


def tint(rng: np.random.Generator, strength: float) -> Array:
    """Return a light colour of mean 1, from bluish to warm."""
    warmth = rng.uniform(-strength, strength)
    return np.array([1 + warmth, 1 + 0.1 * rng.uniform(-strength, strength), 1 - warmth])


def _random_window(rng: np.random.Generator) -> Window:
    centre = direction(np.arccos(rng.uniform(0.25, 1.0)), rng.uniform(0, 2 * np.pi))
    across = unit(cross(centre, unit(rng.standard_normal(3))))
    size = rng.uniform(0.06, 0.4, 2)
    radiance = rng.uniform(0.5, 3.0) * tint(rng, 0.12) / np.sqrt(size.prod() * 8)
    return Window(centre, across, float(size[0]), float(size[1]), radiance)


def random_sky(rng: np.random.Generator) -> Sky:
    """Return a sky of irradiance pi on the plane."""
    windows = tuple(_random_window(rng) for _ in range(rng.integers(4, WINDOWS + 1)))
    hue = tint(rng, 0.1)
    lean = rng.uniform(0.2, 0.8) * direction(np.pi / 2, rng.uniform(0, 2 * np.pi))
    zenith, horizon = hue * rng.uniform(0.2, 1.2), hue * tint(rng, 0.08) * rng.uniform(0.3, 1.0)
    sky = Sky(zenith, horizon, lean, windows)
    return sky.brightened(np.pi / sky.irradiance_from_above().mean())


def random_lighting(rng: np.random.Generator) -> Lighting:
    """Return a sky of irradiance pi on the plane, a key lamp of 0.5 to 1.6 times that, and a weak fill lamp.

    A white matt surface would read 0.72 to 0.92 of full scale in the middle.
    """
    sky = random_sky(rng)
    key, fill = rng.uniform(0.5, 1.6), rng.uniform(0.1, 0.3)
    lamps = []
    for share, radius in ((key, rng.uniform(0.12, 0.3)), (fill, 0.25)):
        distance, tilt = rng.uniform(2.0, 3.2), np.radians(rng.uniform(20, 60))
        intensity = np.pi * share * distance**2 / np.cos(tilt) * tint(rng, 0.08)
        lamps.append(Lamp(distance * direction(tilt, rng.uniform(0, 2 * np.pi)), intensity, radius))
    return Lighting(tuple(lamps), sky, rng.uniform(0.72, 0.92) / (1 + key + fill), legacy=True)


def wide_lighting(rng: np.random.Generator, environments: int = 0, least: int = 0) -> Lighting:
    """Return light of many kinds: overcast or a dark room with one lamp, lamps far away or close, hard or soft.

    Args:
        environments: how many pictures of surroundings to choose from; 0: a procedural sky.
        least: as many lamps at least; two at most.
    """
    ambient = float(np.exp(rng.uniform(np.log(0.15), np.log(1.5))))
    if environments:
        sky = Sky(*np.zeros((3, 3)))
        environment = Environment(int(rng.integers(environments)), rng.uniform(0, 2 * np.pi), ambient)
    else:
        sky, environment = random_sky(rng).brightened(ambient), None
    lamps, total = [], ambient
    for strongest in (2.0, 0.6)[: rng.integers(least, 3)]:
        share = float(np.exp(rng.uniform(np.log(0.1), np.log(strongest))))
        distance, tilt = np.exp(rng.uniform(np.log(0.7), np.log(4.0))), np.radians(rng.uniform(5, 70))
        intensity = np.pi * share * distance**2 / np.cos(tilt) * tint(rng, 0.15)
        position = distance * direction(tilt, rng.uniform(0, 2 * np.pi))
        lamps.append(Lamp(position, intensity, distance * rng.uniform(0.01, 0.12)))
        total += share
    return Lighting(tuple(lamps), sky, rng.uniform(0.6, 0.95) / total, environment)
