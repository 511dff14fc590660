"""One view's camera: candidates from features or an orbit, fitted coarse to fine, and how sure the best one is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from neuropbr_dist.data.register.consensus import Bounds, poses
from neuropbr_dist.data.register.features import map_features, match, view_features
from neuropbr_dist.data.register.fit import correlation, information, refined
from neuropbr_dist.data.register.motion import Free
from neuropbr_dist.data.register.orbit import ORBITS, OnOrbit, nearest, sweep
from neuropbr_dist.data.register.pose import Pose, error_on_map, focal_of
from neuropbr_dist.data.register.pyramid import Bytes, MaterialPyramid, ViewPyramid
from neuropbr_dist.data.register.rivals import ELSEWHERE, rivals
from neuropbr_dist.materials.plane import Matrix

Prior = Literal["upstream", "free", "auto"]
Camera = Free | OnOrbit

COARSEST, COARSE, MIDDLE, FINE = 64, 128, 256, 512
"""Sides at which cameras are fitted, in pixels a tile."""
_HOPEFUL, _PROMISING = 0.4, 0.75
"""Correlations at `COARSE` above which a candidate is looked at closely, and above which no further ones are tried."""
_FEW, _MANY = 8, 24
_FIELDS = np.radians([28, 40, 55, 70])  # tried where the field of view isn't known
_NEARLY_AS_GOOD = 0.02
_CLOSE = 0.5  # a rival whose gain is below it is fitted finely, too


@dataclass(frozen=True)
class Settings:
    """Settings of the search for cameras."""

    prior: Prior = "auto"
    """Upstream's orbits, any pose, or both."""
    field_of_view: float = float(np.radians(55))
    """Radians; 0: not known."""
    wrap: bool = True
    """Whether the maps repeat on the plane."""


@dataclass(frozen=True)
class Found:
    """The best camera, and what speaks for it."""

    pose: Pose
    correlation: float
    """Multiple correlation of the view with the maps at `FINE`; see `fit.Explained.correlation`."""
    gain: float
    """Logarithm of how many times less it leaves unexplained than the best camera elsewhere does."""
    on_orbit: bool = False
    """Whether it is one of upstream's."""

    @property
    def confidence(self) -> float:
        """Confidence from 0 to 1; see `confidence_of`."""
        return confidence_of(self.correlation, self.gain)


def confidence_of(fit: float, gain: float) -> float:
    """Return how sure a camera is: 0.5 where right ones and wrong ones are as frequent.

    A wrong camera leaves about as much unexplained as the best other one does, the more nearly, the better both fit;
    where little is explained at all, chance makes larger differences (`benchmarks/register.py` has the figures).

    Args:
        fit: `Found.correlation`.
        gain: `Found.gain`.
    """
    if fit <= 0 or gain <= 0:
        return 0.0
    needed = 0.05 + 0.3 * (1 - min(fit, 1.0) ** 2)
    odds = (gain / needed) ** 2
    return float(odds / (1 + odds))


class Material:
    """A material, with what is made of it once for all its views.

    Args:
        maps: uint8 (8, S, S).
        wrap: see `Settings`.
    """

    def __init__(self, maps: Bytes, wrap: bool) -> None:
        self.pyramid = MaterialPyramid(maps, wrap)
        self.features = map_features(self.pyramid)

    @property
    def textured(self) -> bool:
        """Whether there is anything in its maps to lay a view on."""
        return len(self.pyramid.channels(MIDDLE)) > 0


class Search:
    """A view being laid on a material's maps.

    Args:
        starts: cameras to try first, such as those of the same view in another light.
        rng: draws samples; the result depends on nothing else.
    """

    def __init__(
        self,
        material: Material,
        view: ViewPyramid,
        settings: Settings,
        rng: np.random.Generator,
        starts: Sequence[Pose] = (),
    ) -> None:
        self.material, self.view, self.settings, self.rng = material.pyramid, view, settings, rng
        self._features, self._starts = material.features, starts
        self._leader: tuple[Camera, float] | None = None

    def run(self) -> Found | None:
        """Return the best camera; None where nothing is worth a closer look."""
        best: Found | None = None
        for stage in self._stages():
            before = self._leader
            stage()
            if self._leader is None or self._leader is before or self._leader[1] < _HOPEFUL:
                continue
            found = self._concluded(self._leader[0])
            if best is None or found.confidence > best.confidence:
                best = found
            if best.confidence > 0.5:
                break
        return best

    def coarse(self) -> float:
        """Return the correlation at `COARSE` that the first source's best camera reaches: a quick look."""
        next(self._stages())()
        return self._leader[1] if self._leader else 0.0

    def _stages(self) -> Iterator[Callable[[], None]]:
        """Yield the stages at which candidates come, the likeliest source first."""
        if self._starts:
            zoom = not self.settings.field_of_view
            yield partial(self._try, (Free(pose, zoom) for pose in self._starts), len(self._starts))
        fields = [self.settings.field_of_view] if self.settings.field_of_view else _FIELDS
        matched = self._matched([focal_of(field) for field in fields])
        yield partial(self._try, matched, _FEW * len(fields))
        if self.settings.prior != "free":
            for orbit in ORBITS if self.settings.prior == "upstream" else ORBITS[:2]:
                yield partial(self._try, sweep(self.material, self.view, orbit), _FEW)
        yield partial(self._try, matched, _MANY * len(fields))

    def _matched(self, focals: list[float]) -> Iterator[Camera]:
        """Yield cameras that features agree on, one of each focal length in turn."""
        matches = match(view_features(self.view), self._features)
        sources = [poses(matches, focal, self.settings.wrap, Bounds(), self.rng) for focal in focals]
        while sources:
            for source in list(sources):
                pose = next(source, None)
                if pose is None:
                    sources.remove(source)
                elif self.settings.prior != "upstream":
                    yield Free(pose, zoom=not self.settings.field_of_view)
                elif (camera := nearest(pose, self.settings.wrap)) is not None:
                    yield camera

    def _try(self, candidates: Iterable[Camera], most: int) -> None:
        """Fit candidates coarsely, until one is promising."""
        for count, candidate in enumerate(candidates, 1):
            camera, _ = self._refined(candidate, COARSEST, 6)
            camera, fit = self._refined(camera, COARSE, 8)
            if self._leader is None or fit > self._leader[1]:
                self._leader = camera, fit
            if count >= most or (count > 1 and self._leader[1] > _PROMISING):
                break

    def _refined(self, camera: Camera, side: int, steps: int) -> tuple[Camera, float]:
        return refined(self.material, self.view, camera, side, steps)

    def _concluded(self, camera: Camera) -> Found:
        """Fit a camera finely, compare it with its rivals, take the best."""
        camera, fit = self._refined(camera, MIDDLE, 10)
        camera, fit, moved = self._polished(camera, fit, MIDDLE, rounds=4)
        snapped = self._snapped(camera)
        others = self._rivals(camera, only_orbits=snapped is not None)
        gain = _gain(fit, max((other for _, other in others), default=0.0))
        camera, fit = self._refined(snapped or camera, FINE, 10)
        if moved:
            camera, fit, _ = self._polished(camera, fit, FINE, rounds=2)
        close = [other for other, at_middle in others[:2] if gain < _CLOSE and at_middle > 0]
        finer = sorted((self._refined(other, FINE, 6) for other in close), key=lambda entry: -entry[1])
        if finer and finer[0][1] > fit:
            (camera, fit), finer = finer[0], [(camera, fit), *finer[1:]]
            gain = 0.0
        if finer:
            gain = max(gain, _gain(fit, finer[0][1]))
        return Found(camera.pose, fit, gain, isinstance(camera, OnOrbit))

    def _snapped(self, camera: Camera) -> OnOrbit | None:
        """Return upstream's camera that a free one happens to be, if it is one: that is hardly by chance."""
        if isinstance(camera, OnOrbit):
            return camera if self.settings.prior == "upstream" else None
        orbit = nearest(camera.pose, self.settings.wrap) if self.settings.prior == "auto" else None
        if orbit is None:
            return None
        snapped, fit = self._refined(orbit, MIDDLE, 8)
        before = correlation(self.material, self.view, camera.map_to_view(), MIDDLE)
        assert isinstance(snapped, OnOrbit)
        return snapped if fit > before - _NEARLY_AS_GOOD else None

    def _rivals(self, camera: Camera, only_orbits: bool) -> list[tuple[Camera, float]]:
        """Return cameras elsewhere, with their correlations at `MIDDLE`, best first."""
        found: list[tuple[Camera, float]] = []
        for pose, fit in rivals(self.material, self.view, camera.pose, MIDDLE):
            if not only_orbits:
                found.append((Free(pose, zoom=not self.settings.field_of_view), fit))
            elif (orbit := nearest(pose, self.settings.wrap)) is not None:
                there, fit = self._refined(orbit, MIDDLE, 4)
                # With two angles to move, it may end where the found camera is.
                if error_on_map(there.map_to_view(), camera.map_to_view(), wrap=True) > ELSEWHERE:
                    found.append((there, fit))
        return sorted(found, key=lambda entry: -entry[1])

    def _polished(self, camera: Camera, fit: float, side: int, rounds: int) -> tuple[Camera, float, bool]:
        """Look around for a better fit along the directions that change it least.

        Brushed metal has a local optimum at each of its streaks.
        """
        improved = False
        for _ in range(rounds):
            start = self._best_around(camera, fit, side)
            if start is None:
                break
            other, better = self._refined(start, side, 8)
            if better < fit + 0.001:
                break
            camera, fit, improved = other, better, True
        return camera, fit, improved

    def _best_around(self, camera: Camera, fit: float, side: int, draws: int = 16) -> Camera | None:
        """Return the best of a few random steps of one to six `FINE` pixels, if it fits nearly as well."""
        values, vectors = np.linalg.eigh(information(self.material, self.view, camera, side))
        weak: Matrix = vectors / np.sqrt(np.maximum(values, values[-1] * 1e-8))
        here = camera.map_to_view()
        best, most = None, fit - 0.025
        for _ in range(draws):
            step = weak @ self.rng.normal(size=len(values))
            step *= 0.01 / np.abs(step).max()
            apart = error_on_map(camera.moved(step).map_to_view(), here, wrap=False)
            there = camera.moved(step * (self.rng.uniform(1, 6) / FINE / max(apart, 1e-9)))
            found = correlation(self.material, self.view, there.map_to_view(), side)
            if found > most:
                best, most = there, found
        return best


def _gain(fit: float, rival: float) -> float:
    left, elsewhere = 1 - max(fit, 0.0) ** 2, 1 - max(rival, 0.0) ** 2
    return float(np.log(elsewhere / max(left, 1e-6)))
