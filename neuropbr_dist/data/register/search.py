"""One view's camera."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from neuropbr_dist.data.register.consensus import Bounds, poses
from neuropbr_dist.data.register.features import Features, map_features, match, view_features
from neuropbr_dist.data.register.fit import Free, Motion, correlation, information, refined
from neuropbr_dist.data.register.orbit import ORBITS, nearest, sweep
from neuropbr_dist.data.register.pose import Pose, error_on_map, focal_of
from neuropbr_dist.data.register.pyramid import MaterialPyramid, ViewPyramid
from neuropbr_dist.data.register.rivals import rivals

Prior = Literal["upstream", "free", "auto"]
COARSE, MIDDLE, FINE = 128, 256, 512
GOOD = 0.75
_FOCALS = [focal_of(np.radians(angle)) for angle in (25, 40, 55, 70)]


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
    """See `fit.Explained.correlation`, at the finest side."""
    rival: float
    """Correlation of the best pose elsewhere, at the same side as `middle`."""
    middle: float
    on_orbit: bool = False

    @property
    def gain(self) -> float:
        """Log of how much less the best pose leaves unexplained than the best one elsewhere."""
        def left(correlation: float) -> float:
            return 1 - np.sign(correlation) * correlation**2
        return float(np.log(left(max(self.rival, 0.0)) / max(left(self.middle), 1e-6)))


class Material:
    """A material, with what is made of it once for all its views."""

    def __init__(self, maps, wrap: bool) -> None:
        self.pyramid = MaterialPyramid(maps, wrap)
        self.features = map_features(self.pyramid)


def candidates(material: Material, features: Features, view: ViewPyramid, settings: Settings, rng) -> Iterator[Motion]:
    focals = [focal_of(settings.field_of_view)] if settings.field_of_view else _FOCALS
    matches = match(features, material.features)
    for pose, support in poses(matches, focals[0], settings.wrap, Bounds(), rng):
        yield Free(pose)


def search(material: Material, view: ViewPyramid, settings: Settings, rng: np.random.Generator, log=None) -> Found | None:
    tried: list[tuple[float, Motion]] = []
    features = view_features(view)
    def coarse(motion):
        motion, _ = refined(material.pyramid, view, motion, 64, 6)
        motion, r = refined(material.pyramid, view, motion, COARSE, 8)
        tried.append((r, motion))
        return r
    best = None
    source = candidates(material, features, view, settings, rng)
    for _round in range(3):
        for n, motion in enumerate(source):
            r = coarse(motion)
            top = max(tried, key=lambda e: e[0])[0]
            if n >= 1 and top > GOOD or n >= 7: break
        if settings.prior != 'free' and (not tried or max(tried, key=lambda e: e[0])[0] < GOOD or _round>0) and _round<2:
            for o in ORBITS[2*_round:2*_round+2] if False else ORBITS[_round*1:_round*1+1]:
                for motion in sweep(material.pyramid, view, o):
                    motion, r = refined(material.pyramid, view, motion, COARSE, 8)
                    tried.append((r, motion))
        if not tried: continue
        r, motion = max(tried, key=lambda e: e[0])
        found = conclude(material, view, settings, motion)
        if best is None or found.correlation > best.correlation: best = found
        if best.gain > .4 and best.correlation > .5: break
    return best


def conclude(material, view, settings, motion):
    m, r = refined(material.pyramid, view, motion, MIDDLE, 10)
    others = rivals(material.pyramid, view, m.pose, MIDDLE)
    if others and others[0][1] > r:
        m2, r2 = refined(material.pyramid, view, Free(others[0][0]), MIDDLE, 8)
        o2 = rivals(material.pyramid, view, m2.pose, MIDDLE)
        m, r, others = m2, r2, o2
    rival = others[0][1] if others else 0.0
    m5, r5 = refined(material.pyramid, view, m, FINE, 10)
    orb = nearest(m5.pose, settings.wrap) if settings.prior != "free" else None
    if orb is not None:
        o5, ro = refined(material.pyramid, view, orb, FINE, 10)
        if ro > r5 - 0.02: return Found(o5.pose, ro, rival, r, True)
    return Found(m5.pose, r5, rival, r)


def polished(material, view, motion, r, rng, side=MIDDLE, log=None):
    """Perturb along weak directions."""
    for _ in range(4):
        values, vectors = np.linalg.eigh(information(material, view, motion, side))
        spread = vectors / np.sqrt(np.maximum(values, values[-1] * 1e-8))
        here = motion.pose.map_to_view()
        best = None; near = 0
        for _ in range(16):
            z = rng.normal(size=len(values)); d = spread @ (z / np.linalg.norm(z))
            d *= .01 / np.abs(d).max()
            apart = error_on_map(motion.moved(d).pose.map_to_view(), here, False)
            d *= rng.uniform(1, 6) / 512 / apart
            there = motion.moved(d)
            c = correlation(material, view, there.pose, side)
            if c > r - 0.025:
                near += 1
                if best is None or c > best[0]: best = c, there
        if log is not None: log.append((near, r))
        if best is None: break
        m, c = refined(material, view, best[1], side, 8)
        if c < r + 0.002: break
        motion, r = m, c
    return motion, r
