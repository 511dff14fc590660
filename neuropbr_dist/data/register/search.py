"""One view's camera: candidates from features or an orbit, fitted coarse to fine, and how sure the best one is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from neuropbr_dist.data.register.consensus import Bounds, poses
from neuropbr_dist.data.register.features import map_features, match, view_features
from neuropbr_dist.data.register.fit import correlation, information, refined
from neuropbr_dist.data.register.motion import Free
from neuropbr_dist.data.register.orbit import ORBITS, OnOrbit, nearest, sweep
from neuropbr_dist.data.register.pose import Pose, error_on_map, focal_of
from neuropbr_dist.data.register.pyramid import Bytes, MaterialPyramid, ViewPyramid
from neuropbr_dist.data.register.rivals import rivals

Prior = Literal["upstream", "free", "auto"]
COARSEST, COARSE, MIDDLE, FINE = 64, 128, 256, 512
"""Sides at which poses are fitted, in pixels a tile."""
_PROMISING = 0.75
_FEW, _MANY = 8, 24
_FIELDS = (28, 40, 55, 70)  # degrees, tried where it isn't known
_NEARLY_AS_GOOD = 0.02


@dataclass(frozen=True)
class Settings:
    """How cameras are looked for."""

    prior: Prior = "auto"
    field_of_view: float = float(np.radians(55))
    """Radians; 0: not known."""
    wrap: bool = True


@dataclass(frozen=True)
class Found:
    """The best pose, and what speaks for it."""

    pose: Pose
    correlation: float
    """Multiple correlation of the view with the maps at `FINE`; see `fit.Explained.correlation`."""
    gain: float
    """How much less it leaves unexplained than the best pose elsewhere does: the logarithm of the ratio."""
    on_orbit: bool = False

    @property
    def confidence(self) -> float:
        """From 0 to 1; see `confidence_of`."""
        return confidence_of(self.correlation, self.gain)


def confidence_of(correlation: float, gain: float) -> float:
    """Return how sure a pose is."""
    return float(np.clip(gain / 0.2, 0, 1) * np.clip(correlation / 0.4, 0, 1))


class Material:
    """A material, with what is made of it once for all its views."""

    def __init__(self, maps: Bytes, wrap: bool) -> None:
        self.pyramid = MaterialPyramid(maps, wrap)
        self.features = map_features(self.pyramid)


class Search:
    """A view being laid on a material's maps.

    Args:
        rng: draws samples; the result depends on nothing else.
    """

    def __init__(
        self, material: Material, view: ViewPyramid, settings: Settings, rng: np.random.Generator
    ) -> None:
        self.material, self.view, self.settings, self.rng = material.pyramid, view, settings, rng
        self._matches = match(view_features(view), material.features)
        self._tried: list[tuple[float, Free | OnOrbit]] = []

    def run(self) -> Found | None:
        """Return the best pose; None if there is no candidate at all."""
        best: Found | None = None
        for stage in self._stages():
            before = self._leader()
            stage()
            leader = self._leader()
            if leader is None or leader is before:
                continue
            found = self._concluded(leader)
            if best is None or _value(found) > _value(best):
                best = found
            if best.confidence > 0.5:
                break
        return best

    def _stages(self):
        settings = self.settings
        fields = [settings.field_of_view] if settings.field_of_view else list(np.radians(_FIELDS))
        candidates = self._of_features([focal_of(field) for field in fields])
        yield lambda: self._try(candidates, _FEW * len(fields))
        if settings.prior != "free":
            for orbit in ORBITS:
                yield lambda orbit=orbit: self._try(sweep(self.material, self.view, orbit), _FEW)
        yield lambda: self._try(candidates, _MANY * len(fields))

    def _of_features(self, focals: list[float]) -> Iterator[Free | OnOrbit]:
        """Free | OnOrbits from matches, one of each focal length in turn."""
        settings = self.settings
        sources = [poses(self._matches, focal, settings.wrap, Bounds(), self.rng) for focal in focals]
        while sources:
            for source in list(sources):
                pose, _ = next(source, (None, 0.0))
                if pose is None:
                    sources.remove(source)
                elif settings.prior != "upstream":
                    yield Free(pose, zoom=not settings.field_of_view)
                elif (motion := nearest(pose, settings.wrap)) is not None:
                    yield motion

    def _try(self, candidates: Iterator[Free | OnOrbit], most: int) -> None:
        """Fit candidates coarsely, until one is promising."""
        for count, motion in enumerate(candidates, 1):
            motion, _ = self._refined(motion, COARSEST, 6)
            motion, fit = self._refined(motion, COARSE, 8)
            self._tried.append((fit, motion))
            if count >= most or (count > 1 and max(self._tried, key=lambda e: e[0])[0] > _PROMISING):
                break

    def _leader(self) -> Free | OnOrbit | None:
        return max(self._tried, key=lambda entry: entry[0])[1] if self._tried else None

    def _refined(self, motion: Free | OnOrbit, side: int, steps: int) -> tuple[Free | OnOrbit, float]:
        return refined(self.material, self.view, motion, side, steps)

    def _concluded(self, motion: Free | OnOrbit) -> Found:
        """Fit a motion finely, compare it with its rivals, take the best."""
        motion, fit = self._refined(motion, MIDDLE, 10)
        motion, fit, moved = self._polished(motion, fit, MIDDLE)
        others = rivals(self.material, self.view, motion.pose, MIDDLE)
        if others and others[0][1] > fit and self.settings.prior != "upstream":
            motion, fit = self._refined(Free(others[0][0]), MIDDLE, 8)
            others = rivals(self.material, self.view, motion.pose, MIDDLE)
        gain = _gain(fit, max((other for _, other in others), default=0.0))
        motion, fit = self._refined(motion, FINE, 10)
        if moved:
            motion, fit, _ = self._polished(motion, fit, FINE)
        if gain < 0.5 and others:
            finer = [refined(self.material, self.view, Free(pose), FINE, 6)[1] for pose, _ in others[:2]]
            gain = max(gain, _gain(fit, max(finer)))
        orbit = nearest(motion.pose, self.settings.wrap) if self.settings.prior == "auto" else None
        if orbit is not None:
            snapped, on_orbit = self._refined(orbit, FINE, 10)
            if on_orbit > fit - _NEARLY_AS_GOOD:
                return Found(snapped.pose, on_orbit, gain, True)
        return Found(motion.pose, fit, gain, self.settings.prior == "upstream")

    def _polished(self, motion: Free | OnOrbit, fit: float, side: int) -> tuple[Free | OnOrbit, float, bool]:
        """Look around for a better fit along the directions that change it least.

        Brushed metal has a local optimum at each of its streaks.
        """
        improved = False
        for _ in range(4):
            start = self._best_around(motion, fit, side)
            if start is None:
                break
            other, better = self._refined(start, side, 8)
            if better < fit + 0.001:
                break
            motion, fit, improved = other, better, True
        return motion, fit, improved

    def _best_around(
        self, motion: Free | OnOrbit, fit: float, side: int, draws: int = 16
    ) -> Free | OnOrbit | None:
        values, vectors = np.linalg.eigh(information(self.material, self.view, motion, side))
        weak = vectors / np.sqrt(np.maximum(values, values[-1] * 1e-8))
        here = motion.map_to_view()
        best, most = None, fit - 0.025
        for _ in range(draws):
            normal = self.rng.normal(size=len(values))
            step = weak @ (normal / np.linalg.norm(normal))
            step *= 0.01 / np.abs(step).max()
            apart = error_on_map(motion.moved(step).map_to_view(), here, wrap=False)
            there = motion.moved(step * (self.rng.uniform(1, 6) / FINE / apart))
            found = correlation(self.material, self.view, there.map_to_view(), side)
            if found > most:
                best, most = there, found
        return best


def _value(found: Found) -> float:
    return found.confidence + 0.01 * found.correlation


def _gain(fit: float, rival: float) -> float:
    left = 1 - np.sign(fit) * fit**2
    return float(np.log((1 - max(rival, 0.0) ** 2) / max(left, 1e-6)))
