"""Work of a process on one sample: read its pictures, find its cameras, say why one isn't found."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from neuropbr_dist.data.cameras import Cameras
from neuropbr_dist.data.files.decode import read_picture
from neuropbr_dist.data.files.entries import CURRICULA, VIEW_FILES, Renders
from neuropbr_dist.data.register.pose import Pose, error_on_map
from neuropbr_dist.data.register.pyramid import Bytes, ViewPyramid
from neuropbr_dist.data.register.search import COARSE, Found, Material, Search, Settings
from neuropbr_dist.errors import UserError
from neuropbr_dist.kinds import fits
from neuropbr_dist.materials.channels import MAP_NAMES
from neuropbr_dist.materials.plane import PlaneCamera, fault_of

SURE = 0.5
"""Confidence above which a camera counts as found."""
LEAST_USABLE = 0.1  # share of a picture that isn't clipped
_SAME = 8 / 512  # tiles: clean and dirty views whose cameras are no further apart share the clean one's
_LEAST_ALIKE = 0.4  # correlation up to which a camera that isn't sure is none


@dataclass(frozen=True)
class Job:
    """A sample whose cameras are wanted."""

    name: str
    material: str
    maps: tuple[Path, ...]
    views: Mapping[Renders, tuple[Path, ...]]
    """Picture files of the views, by folder."""
    known: Mapping[Renders, Cameras] = field(default_factory=dict)
    """Cameras that are kept, by folder; None for a view that is looked for."""

    def key(self) -> list[list[int]]:
        """Return sizes and times of its files: a changed file makes it another job."""
        stats = [path.stat() for paths in (self.maps, *self.views.values()) for path in paths]
        return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


@dataclass
class ViewOutcome:
    """Result of the search for one view's camera."""

    map_to_view: list[list[float]] | None = None
    eye: list[float] | None = None
    confidence: float = 0.0
    correlation: float = 0.0
    on_orbit: bool = False
    kept: bool = False
    """Whether it was there before."""
    reason: str = ""
    """Reason why there is no camera, or no sure one; else ''."""

    @property
    def camera(self) -> PlaneCamera | None:
        """The camera, if there is one."""
        if self.map_to_view is None:
            return None
        eye = None if self.eye is None else np.array(self.eye)
        return PlaneCamera(np.array(self.map_to_view), eye, self.confidence)

    @property
    def found(self) -> bool:
        """Whether the camera is sure enough to be used."""
        return self.map_to_view is not None and self.confidence > SURE


@dataclass
class Outcome:
    """Result of the search for a sample's cameras; a line of the journal."""

    name: str
    material: str
    key: list[list[int]]
    views: dict[Renders, list[ViewOutcome]]
    """Outcomes of the views by folder, three each."""
    remarks: list[str] = field(default_factory=list)
    """Sentences about the sample as a whole."""

    def line(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    @staticmethod
    def of_line(line: dict[str, Any]) -> Outcome:
        """Return the outcome that `line` made the JSON of."""
        views = {renders: [ViewOutcome(**view) for view in views] for renders, views in line["views"].items()}
        return Outcome(line["name"], line["material"], line["key"], views, line["remarks"])

    @property
    def all_views(self) -> list[ViewOutcome]:
        """The views of all folders."""
        return [view for views in self.views.values() for view in views]


_ROW = float, float, float
_OUTCOME = {
    "name": str,
    "material": str,
    "key": list[list[int]],
    "views": dict[str, list],
    "remarks": list[str],
}
_VIEW = {
    "map_to_view": list | None, "eye": list | None, "confidence": float, "correlation": float, "on_orbit": bool,
    "kept": bool, "reason": str,
}  # fmt: skip


def is_line(value: Any) -> bool:
    """Return whether a value read from JSON is a line of the journal.

    A line is the words of a call, or an outcome under a prior.
    """
    if fits(value, {"call": dict}):
        return True
    return fits(value, {"prior": str, "outcome": _OUTCOME}) and all(
        renders in CURRICULA[1] and len(views) == len(VIEW_FILES) and all(map(_is_view, views))
        for renders, views in value["outcome"]["views"].items()
    )


def _is_view(value: Any) -> bool:
    if not fits(value, _VIEW):
        return False
    matrix, eye = value["map_to_view"], value["eye"]
    if not (matrix is None or fits(matrix, (_ROW, _ROW, _ROW))) or not (eye is None or fits(eye, _ROW)):
        return False
    camera = ViewOutcome(**value).camera
    return camera is None or fault_of(camera) is None


def begin(settings: Settings) -> None:
    """Make a process ready: one thread, since there is a process a core."""
    cv2.setNumThreads(1)
    global _settings
    _settings = settings


_settings = Settings()


def register_sample(job: Job) -> Outcome:
    """Find a sample's cameras."""
    key = job.key()
    try:
        material = _material(job.maps, _settings.wrap)
    except UserError as error:
        views = {
            renders: [ViewOutcome(reason=str(error)) for _ in paths] for renders, paths in job.views.items()
        }
        return Outcome(job.name, job.material, key, views)
    outcome = Outcome(job.name, job.material, key, {})
    poses: dict[int, Pose] = {}
    for renders, paths in job.views.items():
        pictures = [_read(path) for path in paths]
        if copies := _copies(pictures):
            outcome.remarks.append(f"{copies} of its {renders} views are the same picture")
        known = job.known.get(renders, (None,) * len(paths))
        outcome.views[renders] = [
            _view_outcome(material, picture, camera, poses, number, f"{job.name}/{renders}/{number}")
            for number, (picture, camera) in enumerate(zip(pictures, known, strict=True))
        ]
    return outcome


def _view_outcome(
    material: Material,
    picture: Bytes | str,
    known: PlaneCamera | None,
    poses: dict[int, Pose],
    number: int,
    key: str,
) -> ViewOutcome:
    """Return one view's outcome; `poses` holds finds for the same view in another folder, and gets what is found."""
    if known is not None:
        return _kept(known)
    if isinstance(picture, str):
        return ViewOutcome(reason=picture)
    if not material.textured:
        return ViewOutcome(reason="the maps have no texture to lay it on")
    view = ViewPyramid(picture)
    usable = float(view.at(COARSE)[1].mean())
    if usable < LEAST_USABLE:
        return ViewOutcome(reason=f"{1 - usable:.0%} of the picture is clipped to white or black")
    starts = [poses[number]] if number in poses else []
    found = Search(material, view, _settings, _random(key), starts).run()
    if found is None:
        return ViewOutcome(reason="nothing in the maps looks like it")
    if starts and found.confidence > SURE and _same(found.pose, starts[0]):
        found = Found(
            starts[0], found.correlation, found.gain, found.on_orbit
        )  # both folders' pictures share it
    elif found.confidence > SURE:
        poses[number] = found.pose
    return _outcome_of(found)


def _outcome_of(found: Found) -> ViewOutcome:
    confidence, fit = round(found.confidence, 4), round(found.correlation, 4)
    reason = ""
    if confidence <= SURE:
        if fit <= _LEAST_ALIKE:
            return ViewOutcome(reason=f"fits badly (correlation {fit:.2f})")
        reason = f"fits elsewhere nearly as well (correlation {fit:.2f})"
    camera = found.pose.camera(_settings.wrap)
    assert camera.eye is not None
    matrix, eye = camera.map_to_view.tolist(), camera.eye.tolist()
    return ViewOutcome(matrix, eye, confidence, fit, found.on_orbit, reason=reason)


def _kept(camera: PlaneCamera) -> ViewOutcome:
    eye = None if camera.eye is None else camera.eye.tolist()
    return ViewOutcome(camera.map_to_view.tolist(), eye, camera.confidence, kept=True)


def likeness(job: Job, maps: tuple[Path, ...]) -> float:
    """Return how well a sample's first view fits on some maps, at a quick look."""
    material = _material(maps, _settings.wrap)
    picture = _read(next(iter(job.views.values()))[0])
    if isinstance(picture, str) or not material.textured:
        return 0.0
    return Search(material, ViewPyramid(picture), _settings, _random(job.name)).coarse()


@lru_cache(maxsize=1)
def _material(maps: tuple[Path, ...], wrap: bool) -> Material:
    """Return the material of these files; samples of one come after each other."""
    planes = [read_picture(path, role) for path, role in zip(maps, MAP_NAMES, strict=True)]
    return Material(np.concatenate(planes), wrap)


def _read(path: Path) -> Bytes | str:
    """Return a view, or why it can't be read."""
    try:
        return read_picture(path, "view")
    except UserError as error:
        return str(error)


def _copies(pictures: Sequence[Bytes | str]) -> str:
    """Return how many of three pictures are alike: '', 'two' or 'all three'."""
    contents = [picture.tobytes() for picture in pictures if not isinstance(picture, str)]
    return ["", "two", "all three"][len(contents) - len(set(contents))]


def _same(a: Pose, b: Pose) -> bool:
    return error_on_map(a.map_to_view(), b.map_to_view(), _settings.wrap) < _SAME


def _random(key: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(key.encode()))
