"""Links between photos that lie on each other, and the reasons why others don't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from neuropbr_dist.data.photos.pairs import Overlay, Shown, likeness, overlaid
from neuropbr_dist.data.photos.tilt import Link
from neuropbr_dist.materials.plane import project

LEAST_LIKENESS = 0.45
"""Correlation of two photos from which on they count as registered; of other materials' it is below."""
_CLEAR = 0.8  # what repeats is, mirrored, like itself up to here
_LEAST_FEATURES = 30
_UNMOVED = 0.01  # share of what two photos show
_MOST_SLACK = 0.02  # share of the side: 10 pixels of 512


@dataclass(frozen=True)
class Links:
    """Links found between photos."""

    hub: int
    """The photo that all others that are used are linked to."""
    links: dict[tuple[int, int], Link]
    """Links by the numbers of two photos that are used, the smaller first."""
    remarks: list[str] = field(default_factory=list)
    """Sentences on those that aren't used."""

    @property
    def used(self) -> list[int]:
        """Numbers of the photos that are used."""
        return sorted({self.hub} | {number for pair in self.links for number in pair})


def find_links(shown: Sequence[Shown]) -> Links:
    """Lay every photo on every other one."""
    reasons = {
        number: "it has too little texture to be registered by"
        for number, one in enumerate(shown)
        if len(one.features.points) < _LEAST_FEATURES
    }
    overlays, sliding = {}, set()
    for first, second in combinations(range(len(shown)), 2):
        if first in reasons or second in reasons:
            continue
        overlay = overlaid(shown[first], shown[second])
        if overlay is None or overlay.likeness < LEAST_LIKENESS:
            continue
        if overlay.slack > _MOST_SLACK:
            sliding.add((first, second))
        elif _from_one_place(overlay):
            reasons[second] = (
                f"it was taken from the same place as {shown[first].photo.path.name}, or is the same picture"
            )
        elif overlay.likeness > _CLEAR or not _mirrored(shown[first], shown[second], overlay.likeness):
            overlays[first, second] = overlay
    overlays = {pair: overlay for pair, overlay in overlays.items() if not reasons.keys() & set(pair)}
    there = [number for number in range(len(shown)) if number not in reasons]
    hub = _hub(there or [0], overlays)
    linked = {hub} | {number for pair in overlays if hub in pair for number in pair}
    for number in there:
        if number not in linked:
            slides = (min(hub, number), max(hub, number)) in sliding
            reasons[number] = _slides(shown[hub]) if slides else _why_not(shown, hub, number)
    kept = {
        pair: Link(*pair, overlay.homography, overlay.window, overlay.precision)
        for pair, overlay in overlays.items()
        if linked.issuperset(pair)
    }
    left_out = [number for number in sorted(reasons) if number != hub]
    remarks = [f"{shown[number].photo.path.name} is left out: {reasons[number]}." for number in left_out]
    return Links(hub, kept, remarks)


def _from_one_place(overlay: Overlay) -> bool:
    """Return whether two photos lie on each other without being moved."""
    corners = overlay.square.corners()
    away = np.linalg.norm(project(overlay.homography, corners) - corners, axis=1)
    return bool(away.max() < _UNMOVED * overlay.square.side)


def _hub(there: Sequence[int], overlays: dict[tuple[int, int], Overlay]) -> int:
    """Return the photo with the most links, and of these with the most evidence; the first where there are none."""

    def merit(number: int) -> tuple[int, float, int]:
        own = [overlay.evidence for pair, overlay in overlays.items() if number in pair]
        return len(own), sum(own), -number

    return max(there, key=merit)


def _mirrored(first: Shown, second: Shown, least: float) -> bool:
    """Return whether the second photo is more like the first mirrored than `least`."""
    return likeness(first, second.mirrored()) > least


def _slides(hub: Shown) -> str:
    return (
        f"its texture runs one way, so that where along it {hub.photo.path.name} lies can't be told; mark a "
        "corner of the surface, with a bit of tape, say"
    )


def _why_not(shown: Sequence[Shown], hub: int, number: int) -> str:
    name = shown[hub].photo.path.name
    if _mirrored(shown[hub], shown[number], LEAST_LIKENESS):
        return f"it shows what {name} shows, but mirrored"
    return f"nothing in it lies on {name} (another material, too little texture, a scene with depth, or a view too different)"
