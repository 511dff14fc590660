"""What surrounds a material: three cameras, lamps, and a sky with windows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from neuropbr_dist.materials.noise import Array, Value, mix
from neuropbr_dist.materials.plane import PlaneCamera, pinhole

FIELD_OF_VIEW = np.radians(55)
_WINDOW_SOFTNESS = np.float32(0.12)  # curtains and corners: no window has a hard edge


def unit(vector: Array) -> Array:
    """Vectors along the first axis, made unit."""
    return vector / np.linalg.norm(vector, axis=0)


def dot(a: Array, b: Array) -> Array:
    """Inner products of vectors along the first axis, of length 3."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def as_column(vector: Array) -> Array:
    """(3,) -> (3, 1) float32, to be combined with (3, N)."""
    return np.asarray(vector, np.float32)[:, None]


def direction(tilt: float, azimuth: float) -> Array:
    """Unit vector `tilt` radians from the surface's normal (+Z), at `azimuth` from +X: (3,)."""
    return np.array([np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), np.cos(tilt)])


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. Units: the plane z = 0 carries one repeat of the material on [-0.5, 0.5]^2."""

    position: Array
    """(3,)."""
    target: Array
    """(3,) the point in the middle of the picture."""
    roll: float = 0.0
    """Turn about the viewing direction, radians."""

    def axes(self) -> Array:
        """Return unit vectors to the picture's right, to its top and into it: (3, 3), one a row."""
        forward = unit(self.target - self.position)
        right = unit(np.cross(forward, [0.0, 1.0, 0.0]))
        up = np.cross(right, forward)
        c, s = np.cos(self.roll), np.sin(self.roll)
        return np.stack([c * right + s * up, c * up - s * right, forward])

    def on_plane(self) -> PlaneCamera:
        """Return how its picture sees the plane."""
        return pinhole(self.position, self.axes(), float(FIELD_OF_VIEW))

    def rays(self, column: Array, row: Array) -> Array:
        """Ray directions (3, N), not unit, through picture coordinates in [0, 1]; row 0 is the top."""
        right, up, forward = self.axes()
        half = np.tan(FIELD_OF_VIEW / 2)
        across, above = half * (2 * column - 1), half * (1 - 2 * row)
        rays = forward[:, None] + right[:, None] * across + up[:, None] * above
        return rays.astype(np.float32)


@dataclass(frozen=True)
class Lamp:
    """A small round light."""

    position: Array
    """(3,)."""
    intensity: Array
    """(3,) radiant intensity: irradiance is intensity * cos / distance^2."""
    radius: float = 0.0
    """Half its width; widens highlights and softens shadows."""


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

    def radiance(self, towards: Array, blur: Value) -> Array:
        """Light from directions (3, N), averaged over a neighbourhood: (3, N).

        Args:
            towards: unit directions.
            blur: width of the averaging box (sine of the angle), about 0.02 (mirror) to 1.5 (matt).
        """
        height = np.clip(towards[2], 0, 1)
        light = mix(as_column(self.horizon), as_column(self.zenith), height)
        light *= 1 + dot(as_column(self.lean), towards)
        wide = blur + _WINDOW_SOFTNESS
        for window in self.windows:
            along = as_column(np.cross(window.centre, window.across))
            u, v, front = (
                dot(axis, towards) for axis in (as_column(window.across), along, as_column(window.centre))
            )
            seen = _box(u, window.half_width, wide) * _box(v, window.half_height, wide) * (front > 0)
            light += as_column(window.radiance) * seen
        return light

    def irradiance_matrix(self) -> Array:
        """(3, 4, 4) quadratic forms M: irradiance at unit normal n is (n, 1) M (n, 1).

        Ramamoorthi and Hanrahan 2001, "An Efficient Representation for Irradiance Environment Maps",
        fitted to this sky; directions below the surface are dark.
        """
        z, azimuth = np.meshgrid((np.arange(32) + 0.5) / 32, (np.arange(64) + 0.5) / 64 * 2 * np.pi)
        z, azimuth = z.ravel(), azimuth.ravel()
        side = np.sqrt(1 - z**2)
        towards = np.stack([side * np.cos(azimuth), side * np.sin(azimuth), z])
        light = self.radiance(towards.astype(np.float32), 0.05).astype(np.float64) * (2 * np.pi / z.size)
        x, y = towards[:2]
        basis = np.stack([np.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1])
        # Squared normalisation of the real harmonics times the cosine's band factors pi, 2 pi / 3, pi / 4.
        first, second = 3 / (4 * np.pi) * 2 * np.pi / 3, 15 / (4 * np.pi) * np.pi / 4
        weight = np.array([0.25, *[first] * 3, *[second] * 3, second / 4, second / 12])
        matrices = []
        for c0, cx, cy, cz, cxy, cyz, cxz, cxx, czz in weight * (light[:, None] * basis).sum(-1):
            matrices.append(
                [
                    [cxx, cxy / 2, cxz / 2, cx / 2],
                    [cxy / 2, -cxx, cyz / 2, cy / 2],
                    [cxz / 2, cyz / 2, 3 * czz, cz / 2],
                    [cx / 2, cy / 2, cz / 2, c0 - czz],
                ]
            )
        return np.array(matrices, np.float32)

    def irradiance_from_above(self) -> Array:
        """(3,) on a plane that faces +Z."""
        up = np.array([0, 0, 1, 1], np.float32)
        return (self.irradiance_matrix() * up * up[:, None]).sum((1, 2))


def _box(offset: Array, half_width: float, blur: Value) -> Array:
    """A box of this half width, blurred by a box: a trapezoid."""
    return np.clip((half_width + blur / 2 - np.abs(offset)) / blur, 0, np.minimum(1, 2 * half_width / blur))


@dataclass(frozen=True)
class Lighting:
    """All light on the surface. The first lamp is the key lamp, which casts the dirty views' shadow."""

    lamps: tuple[Lamp, ...]
    sky: Sky
    exposure: float = 1.0
    """Factor from radiance to the picture's linear value."""


def random_cameras(rng: np.random.Generator) -> list[Camera]:
    """Three views in random order: one within 22 and two within 35 degrees of the normal, 120 apart in azimuth."""
    start = rng.uniform(0, 2 * np.pi)
    cameras = []
    for k, (low, high) in enumerate([(0, 22), (16, 35), (16, 35)]):
        tilt, azimuth = np.radians(rng.uniform(low, high)), start + k * 2 * np.pi / 3 + rng.uniform(-0.2, 0.2)
        target = np.array([*rng.uniform(-0.03, 0.03, 2), 0.0])
        position = target + rng.uniform(0.96, 1.08) * direction(tilt, azimuth)
        cameras.append(Camera(position, target, np.radians(rng.uniform(-5, 5))))
    return [cameras[k] for k in rng.permutation(3)]


def _tint(rng: np.random.Generator, strength: float) -> Array:
    """A light colour of mean 1, from bluish to warm."""
    warmth = rng.uniform(-strength, strength)
    return np.array([1 + warmth, 1 + 0.1 * rng.uniform(-strength, strength), 1 - warmth])


def _random_window(rng: np.random.Generator) -> Window:
    centre = direction(np.arccos(rng.uniform(0.25, 1.0)), rng.uniform(0, 2 * np.pi))
    across = unit(np.cross(centre, unit(rng.standard_normal(3))))
    size = rng.uniform(0.06, 0.4, 2)
    radiance = rng.uniform(0.5, 3.0) * _tint(rng, 0.12) / np.sqrt(size.prod() * 8)
    return Window(centre, across, float(size[0]), float(size[1]), radiance)


def random_lighting(rng: np.random.Generator) -> Lighting:
    """A sky of irradiance pi on the plane, a key lamp of 0.5 to 1.6 times that, and a weak fill lamp.

    A white matt surface would read 0.72 to 0.92 of full scale in the middle.
    """
    windows = tuple(_random_window(rng) for _ in range(rng.integers(4, 8)))
    tint = _tint(rng, 0.1)
    lean = rng.uniform(0.2, 0.8) * direction(np.pi / 2, rng.uniform(0, 2 * np.pi))
    zenith, horizon = tint * rng.uniform(0.2, 1.2), tint * _tint(rng, 0.08) * rng.uniform(0.3, 1.0)
    scale = np.pi / Sky(zenith, horizon, lean, windows).irradiance_from_above().mean()
    windows = tuple(replace(window, radiance=window.radiance * scale) for window in windows)
    sky = Sky(zenith * scale, horizon * scale, lean, windows)
    key, fill = rng.uniform(0.5, 1.6), rng.uniform(0.1, 0.3)
    lamps = []
    for share, radius in ((key, rng.uniform(0.12, 0.3)), (fill, 0.25)):
        distance, tilt = rng.uniform(2.0, 3.2), np.radians(rng.uniform(20, 60))
        intensity = np.pi * share * distance**2 / np.cos(tilt) * _tint(rng, 0.08)
        lamps.append(Lamp(distance * direction(tilt, rng.uniform(0, 2 * np.pi)), intensity, radius))
    return Lighting(tuple(lamps), sky, rng.uniform(0.72, 0.92) / (1 + key + fill))
