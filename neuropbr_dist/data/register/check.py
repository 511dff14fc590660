"""Check that views lie on their maps where their cameras say, with the faults of those that don't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from neuropbr_dist.data.files.decode import read_picture
from neuropbr_dist.data.files.entries import Fault, Sample
from neuropbr_dist.data.files.headers import read_header
from neuropbr_dist.data.register.fit import correlation, refined
from neuropbr_dist.data.register.motion import Plane
from neuropbr_dist.data.register.pose import error_on_map
from neuropbr_dist.data.register.pyramid import MaterialPyramid, ViewPyramid
from neuropbr_dist.data.register.rivals import best_shift
from neuropbr_dist.data.register.search import COARSE, MIDDLE, Settings
from neuropbr_dist.data.register.threads import one_thread_each
from neuropbr_dist.data.register.work import LEAST_USABLE, SURE, begin
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.channels import MAP_NAMES
from neuropbr_dist.materials.plane import CONFIDENCE, MATRIX, WRAP, Matrix, turn_of_picture
from neuropbr_dist.processes import in_parallel

FAR, NOTABLE = 8 / 512, 2 / 512
"""Tiles between a view and its maps that are a fault, and that are mentioned."""
_FITS, _BETTER = 0.35, 0.2
_MOST_LOST, _MOST_OTHERS = 8, 64
_TURNS = ("", "a quarter turn", "half a turn", "three quarters of a turn")


@dataclass(frozen=True)
class Placed:
    """Place of one view on its maps."""

    number: int
    correlation: float
    apart: float
    """Tiles, mean over the map."""
    reason: str = ""
    """Fault of the place, if it shows; else ''."""

    @property
    def fits(self) -> bool:
        """Whether it shows its material near where its camera says."""
        return not self.reason and self.correlation > _FITS


def misplaced(samples: Sequence[Sample], workers: int, progress: bool) -> tuple[list[Fault], list[str]]:
    """Lay every view that has a sure camera on its maps.

    Returns:
        Faults: views that are elsewhere, mirrored or turned, exchanged within a sample, or of another material. Notes:
        one line with the distances.
    """
    known = [
        sample
        for sample in samples
        if sample.cameras is not None and (sample.cameras[:, CONFIDENCE] > 0).any()
    ]
    if not known:
        return [], []
    known.sort(key=lambda sample: (sample.material, sample.key))
    placed: dict[str, list[Placed]] = {}
    with one_thread_each():
        with tqdm(total=len(known), unit="sample", desc="cameras", disable=not progress) as bar:
            for sample, views in in_parallel(_place, known, workers, begin, (Settings(),), chunk=4):
                placed[sample.key] = views
                bar.update()
        lost = [sample for sample in known if any(not v.fits and not v.reason for v in placed[sample.key])]
        others = _others(lost, known, workers)
    faults = [
        fault for sample in known for fault in _faults(sample, placed[sample.key], others.get(sample.key, ""))
    ]
    return faults, _notes(known, placed)


def _place(sample: Sample) -> list[Placed]:
    """Place each view with a sure camera that shows enough to tell, in a working process."""
    assert sample.cameras is not None
    try:
        wrap = bool(sample.cameras[:, WRAP].any())
        material = _material(sample.maps, wrap)
        pictures = [ViewPyramid(read_picture(path, "view")) for path in sample.views]
    except UserError:
        return []  # it is a fault already
    if not len(material.channels(COARSE)):
        return []
    matrices = [row[MATRIX].reshape(3, 3).astype(np.float64) for row in sample.cameras]
    sure = [number for number in range(len(pictures)) if sample.cameras[number, CONFIDENCE] > SURE]
    return [
        _placed(material, pictures[number], number, matrices, sure)
        for number in sure
        if pictures[number].at(COARSE)[1].mean() > LEAST_USABLE
    ]


def _placed(
    material: MaterialPyramid, view: ViewPyramid, number: int, matrices: Sequence[Matrix], sure: Sequence[int]
) -> Placed:
    """Place one view on its maps: near where its camera says, unless it fits clearly better elsewhere."""
    given = matrices[number]
    motion, fit = refined(material, view, Plane(given), COARSE, 6)
    needed = max(_FITS, fit + _BETTER)
    turned = [(_turn_of(turn), turn_of_picture(turn) @ given) for turn in range(1, 8)]
    others = [(f"is seen by the camera of view {k}", matrices[k]) for k in sure if k != number]
    named = [(correlation(material, view, matrix, COARSE), what) for what, matrix in (*turned, *others)]
    if max(named)[0] > needed:
        return Placed(number, max(named)[0], 0.0, max(named)[1])
    moved, far = refined(material, view, Plane(given @ best_shift(material, view, given)), COARSE, 6)
    if far > needed:
        motion = moved
    motion, fine = refined(material, view, motion, MIDDLE, 6)
    apart = error_on_map(motion.map_to_view(), given, material.wrap)
    reason = _exchanged(motion.map_to_view(), number, matrices, sure, material.wrap) if apart > FAR else ""
    return Placed(number, max(fit, fine), apart, reason)


def _turn_of(turn: int) -> str:
    turned = f"turned by {_TURNS[turn % 4]}" if turn % 4 else ""
    return "is " + " and ".join(word for word in (turned, "mirrored" if turn > 3 else "") if word)


def _exchanged(
    found: Matrix, number: int, matrices: Sequence[Matrix], sure: Sequence[int], wrap: bool
) -> str:
    """Return which other camera of its sample a view was found at, as a phrase; '' if at none."""
    for other in sure:
        if other != number and error_on_map(found, matrices[other], wrap) < NOTABLE:
            return f"is seen by the camera of view {other}"
    return ""


def _others(lost: Sequence[Sample], known: Sequence[Sample], workers: int) -> dict[str, str]:
    """Return what lost samples show instead, by key: another sample's material, by its camera or by their own."""
    keys = {sample.key for sample in lost}
    order = [*lost, *(sample for sample in known if sample.key not in keys)]
    pairs = [
        (sample, other)
        for sample in lost[:_MOST_LOST]
        for other in [o for o in order if o.material != sample.material][:_MOST_OTHERS]
    ]
    best: dict[str, tuple[float, str]] = {}
    for (sample, other), (swapped, mixed) in in_parallel(
        _likeness, pairs, workers, begin, (Settings(),), chunk=4
    ):
        fit = max(swapped, mixed)
        if fit <= max(_FITS + 0.1, best.get(sample.key, (0.0, ""))[0]):
            continue
        if swapped >= mixed:
            text = f"its views are those of {other.key}: swapped?"
        else:
            text = f"its views show {other.material}, not {sample.material}: a mix-up in the metadata?"
        best[sample.key] = fit, text
    return {key: text for key, (_, text) in best.items()}


def _likeness(pair: tuple[Sample, Sample]) -> tuple[float, float]:
    """Return how well the first sample's views fit on the other's material, by the other's cameras and by their own."""
    sample, other = pair
    assert sample.cameras is not None and other.cameras is not None
    try:
        material = _material(other.maps, bool(other.cameras[:, WRAP].any()))
        views = [ViewPyramid(read_picture(path, "view")) for path in sample.views]
    except UserError:
        return 0.0, 0.0
    fits = []
    for cameras in (other.cameras, sample.cameras):
        matrices = [row[MATRIX].reshape(3, 3).astype(np.float64) for row in cameras if row[CONFIDENCE] > 0]
        found = [correlation(material, v, m, COARSE) for v, m in zip(views, matrices, strict=False)]
        fits.append(float(np.median(found)) if found else 0.0)
    return fits[0], fits[1]


def _faults(sample: Sample, placed: Sequence[Placed], other: str) -> list[Fault]:
    if other and sum(not view.fits for view in placed) * 2 > len(placed):
        return [Fault(f"{sample.key}: {other}", (sample.name,))]
    side = _side(sample)
    found = []
    for view in placed:
        if view.reason:
            text = view.reason
        elif not view.fits:
            text = (
                f"doesn't show {sample.material} where its camera says (correlation {view.correlation:.2f})"
            )
        elif view.apart > FAR:
            text = f"is {view.apart * side:.1f} px of the maps' {side} from where its camera says"
        else:
            continue
        found.append(Fault(f"{sample.key}: view {view.number} {text}", (sample.name,)))
    return found


def _notes(samples: Sequence[Sample], placed: dict[str, list[Placed]]) -> list[str]:
    entries = [(sample, view) for sample in samples for view in placed[sample.key] if view.fits]
    sure = sum(
        int((sample.cameras[:, CONFIDENCE] > SURE).sum()) for sample in samples if sample.cameras is not None
    )
    untold = sure - sum(len(views) for views in placed.values())
    notes = [f"cameras: {untold} views show too little to be laid on their maps"] if untold else []
    if entries:
        pixels = [view.apart * _side(sample) for sample, view in entries]
        sample, view = entries[int(np.argmax(pixels))]
        notes.append(
            f"cameras: rectified views and maps are {np.median(pixels):.2f} px apart (median of {len(entries)}), "
            f"at most {max(pixels):.1f} px ({sample.key}, view {view.number})"
        )
        far = sum(view.apart > NOTABLE for _, view in entries)
        if far:
            notes.append(f"cameras: {far} views are further than {NOTABLE:.1%} of the side from their maps")
    return notes


def _side(sample: Sample) -> int:
    """Return the side of a sample's maps in pixels."""
    return _side_of(sample.maps[0])


@cache
def _side_of(path: Path) -> int:
    return read_header(path).width


@lru_cache(maxsize=1)
def _material(maps: tuple[Path, ...], wrap: bool) -> MaterialPyramid:
    """Return the material of these files; samples of one come after each other."""
    planes = [read_picture(path, role) for path, role in zip(maps, MAP_NAMES, strict=True)]
    return MaterialPyramid(np.concatenate(planes), wrap)
