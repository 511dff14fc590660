"""Which of some photos lie on each other, and why the others don't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from neuropbr_dist.data.photos.pairs import Overlay, Shown, overlaid
from neuropbr_dist.data.photos.tilt import Link

LEAST_LIKENESS = 0.45
"""Correlation of two photos from which on they count as registered; of other materials' it is below."""
_CLEAR = 0.8  # what repeats is, mirrored, like itself up to here
_LEAST_FEATURES = 30
_SAME = 1.0  # of 255: mean difference of the same picture, saved twice


@dataclass(frozen=True)
class Links:
    """What was found between photos."""

    hub: int
    """The photo that all others that are used are linked to."""
    links: dict[tuple[int, int], Link]
    """By the numbers of two photos that are used, the smaller first."""
    remarks: list[str] = field(default_factory=list)
    """Sentences on those that aren't used."""

    @property
    def used(self) -> list[int]:
        """Which photos are."""
        return sorted({self.hub} | {number for pair in self.links for number in pair})


def find_links(shown: Sequence[Shown]) -> Links:
    """Lay every photo on every other one."""
    reasons = _at_first_sight(shown)
    there = [number for number in range(len(shown)) if number not in reasons]
    overlays = {}
    for first, second in combinations(there, 2):
        overlay = overlaid(shown[first], shown[second])
        if overlay is None or overlay.likeness < LEAST_LIKENESS:
            continue
        if overlay.likeness < _CLEAR and _mirrored(shown[first], shown[second], overlay.likeness):
            continue
        overlays[first, second] = overlay
    hub = _hub(there or [0], overlays)
    linked = {hub} | {number for pair in overlays if hub in pair for number in pair}
    for number in there:
        if number not in linked:
            reasons[number] = _why_not(shown, hub, number)
    kept = {
        pair: Link(*pair, overlay.homography, overlay.window, overlay.precision)
        for pair, overlay in overlays.items()
        if linked.issuperset(pair)
    }
    remarks = [f"{shown[number].photo.path.name} is left out: {why}." for number, why in sorted(reasons.items())
               if number != hub]  # fmt: skip
    return Links(hub, kept, remarks)


def _at_first_sight(shown: Sequence[Shown]) -> dict[int, str]:
    """Photos that can't be used, and why."""
    reasons = {}
    for number, one in enumerate(shown):
        if len(one.features.points) < _LEAST_FEATURES:
            reasons[number] = "it has too little texture to be registered by"
        for other in range(number):
            if other not in reasons and _same(one, shown[other]):
                reasons[number] = f"it is the same picture as {shown[other].photo.path.name}"
    return reasons


def _same(one: Shown, other: Shown) -> bool:
    if one.small.shape != other.small.shape:
        return False
    return float(np.abs(one.small.astype(np.int16) - other.small).mean()) < _SAME


def _hub(there: Sequence[int], overlays: dict[tuple[int, int], Overlay]) -> int:
    """The photo with the most links, and of these with the most evidence; the first where there are none."""

    def merit(number: int) -> tuple[int, float, int]:
        own = [overlay.evidence for pair, overlay in overlays.items() if number in pair]
        return len(own), sum(own), -number

    return max(there, key=merit)


def _mirrored(first: Shown, second: Shown, least: float) -> bool:
    """Whether the second photo is more like the first mirrored than `least`."""
    overlay = overlaid(first, second.mirrored())
    return overlay is not None and overlay.likeness > least


def _why_not(shown: Sequence[Shown], hub: int, number: int) -> str:
    name = shown[hub].photo.path.name
    if _mirrored(shown[hub], shown[number], LEAST_LIKENESS):
        return f"it shows what {name} shows, but mirrored"
    return f"nothing in it lies on {name} (another material, a scene with depth, or a view too different)"
