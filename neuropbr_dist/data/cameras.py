"""`input/cameras.json`: how each picture of a set sees its material.

    {"version": 1, "wrap": true, "samples": {"sample_0000": {"clean": [c, c, c], "dirty": [c, c, c]}}}

with c = {"map_to_view": 3 x 3, "eye": [x, y, z] or null, "confidence": 0 to 1} or null for a view whose camera isn't
known (`materials.plane` has the conventions). Without "dirty" the dirty views have the clean ones' cameras. A sample
may have a "wrap" of its own; where none is given, the plane doesn't repeat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuropbr_dist.data.files.entries import CURRICULA, VIEW_FILES, Fault, Renders
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import read_json, write_text
from neuropbr_dist.materials.plane import ENCODED, PlaneCamera, canonical, encode, fault_of, scaled

CAMERAS_FILE = "cameras.json"
VERSION = 1
VIEWS = len(VIEW_FILES)

_DIGITS = 9
_CAMERA_KEYS = ("map_to_view", "eye", "confidence")

Cameras = tuple[PlaneCamera | None, ...]
"""Cameras of a sample's three views, in order; None: not known."""


@dataclass(frozen=True)
class SampleCameras:
    """The cameras of one sample."""

    views: Mapping[Renders, Cameras]
    """Cameras by folder of the views. Without `dirty`, `clean` is meant."""
    wrap: bool = False
    """Whether the plane repeats its tile."""

    def of(self, renders: str) -> Cameras:
        """Return the three cameras of one folder's views."""
        return self.views.get(renders) or self.views.get("clean") or (None,) * VIEWS  # type: ignore[call-overload]

    def encoded(self, renders: str) -> npt.NDArray[np.float32]:
        """Return the same as a batch carries them: float32 (3, 14), see `plane.encode`."""
        return np.stack([encode(camera, self.wrap) for camera in self.of(renders)])


NOT_KNOWN = np.zeros((VIEWS, ENCODED), np.float32)
"""`SampleCameras.encoded` of a sample of which nothing is known."""


@dataclass
class CameraSet:
    """Content of a camera file: the samples that are right, and the faults of the others."""

    samples: dict[str, SampleCameras] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def read_cameras(path: Path) -> CameraSet:
    """Read a camera file, every number checked. Where the plane repeats, cameras come out `canonical`.

    Raises:
        UserError: it can't be read, or isn't of this form or version.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("samples"), dict):
        raise UserError(f'{path}: not a camera file; {{"version": {VERSION}, "samples": {{…}}}} is needed')
    version, wrap = content.get("version"), content.get("wrap", False)
    if version != VERSION or isinstance(version, bool):
        raise UserError(
            f"{path}: version {_shown(version)}; this release reads {VERSION}; an update may read more"
        )
    if not isinstance(wrap, bool):
        raise UserError(f"{path}: wrap is {_shown(wrap)}; allowed: true or false")
    if unknown := content.keys() - {"version", "wrap", "samples"}:
        raise UserError(f"{path}: unknown key {min(unknown)!r}; allowed: version, wrap, samples")
    found = CameraSet()
    for name, entry in content["samples"].items():
        try:
            found.samples[name] = _sample(entry, wrap)
        except _Fault as fault:
            found.faults.append(Fault(f"{path}: {name}: {fault}", (name,)))
    return found


def write_cameras(path: Path, samples: Mapping[str, SampleCameras]) -> None:
    """Write a camera file, a sample a line; where the plane repeats, `canonical` cameras.

    Raises:
        OSError: it can't be written.
        ValueError: a camera can't be; names the sample.
    """
    wrap = all(sample.wrap for sample in samples.values())
    lines = []
    for name, sample in samples.items():
        entry: dict[str, Any] = {} if sample.wrap == wrap else {"wrap": sample.wrap}
        for renders, cameras in sample.views.items():
            for camera in cameras:
                if camera and (fault := fault_of(camera)):
                    raise ValueError(f"{name}: {fault}")
            entry[renders] = [camera and _written(camera, sample.wrap) for camera in cameras]
        lines.append(f"  {json.dumps(name)}: {json.dumps(entry, allow_nan=False)}")
    head = f'{{"version": {VERSION}, "wrap": {json.dumps(wrap)}, "samples": {{'
    write_text(path, "\n".join([head, ",\n".join(lines), "}}"]) + "\n")


class _Fault(Exception):
    """Fault of one sample; the message goes on where the sample's name ends."""


def _sample(entry: Any, wrap: bool) -> SampleCameras:
    if not isinstance(entry, dict) or not entry.keys() & set(CURRICULA[1]):
        raise _Fault(f"{_shown(entry)}; allowed: an object with clean, dirty or both, and wrap")
    if unknown := entry.keys() - {*CURRICULA[1], "wrap"}:
        raise _Fault(f"unknown key {min(unknown)!r}; allowed: clean, dirty, wrap")
    wrap = entry.get("wrap", wrap)
    if not isinstance(wrap, bool):
        raise _Fault(f"wrap is {_shown(wrap)}; allowed: true or false")
    views: dict[Renders, Cameras] = {}
    for renders in CURRICULA[1]:
        if renders in entry:
            views[renders] = _cameras(entry[renders], renders, wrap)
    return SampleCameras(views, wrap)


def _cameras(value: Any, renders: str, wrap: bool) -> Cameras:
    if not isinstance(value, list) or len(value) != VIEWS:
        count = len(value) if isinstance(value, list) else _shown(value)
        raise _Fault(f"{renders}: {count}; allowed: a list of {VIEWS} cameras, null for one that isn't known")
    found = []
    for number, camera in enumerate(value):
        try:
            found.append(None if camera is None else _camera(camera, wrap))
        except _Fault as fault:
            raise _Fault(f"{renders}, view {number}: {fault}") from None
    return tuple(found)


def _camera(value: Any, wrap: bool) -> PlaneCamera:
    if not isinstance(value, dict) or value.keys() != set(_CAMERA_KEYS):
        found = ", ".join(sorted(value)) if isinstance(value, dict) else ""
        raise _Fault(f"{found or _shown(value)}; allowed: null, or {', '.join(_CAMERA_KEYS)}")
    matrix = _numbers(value["map_to_view"], "map_to_view", (3, 3))
    eye = None if value["eye"] is None else _numbers(value["eye"], "eye", (3,))
    camera = PlaneCamera(matrix, eye, float(_numbers(value["confidence"], "confidence", ())))
    if fault := fault_of(camera):
        raise _Fault(fault)
    return canonical(camera) if wrap else camera


def _numbers(value: Any, what: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return lists of numbers, of this shape and nothing else, as an array: no text, no true, no null."""

    def fits(value: Any, shape: tuple[int, ...]) -> bool:
        if not shape:
            return isinstance(value, int | float) and not isinstance(value, bool)
        return isinstance(value, list) and len(value) == shape[0] and all(fits(v, shape[1:]) for v in value)

    if not fits(value, shape):
        size = " x ".join(map(str, shape))
        raise _Fault(f"{what} is {_shown(value)}; allowed: {f'{size} numbers' if shape else 'a number'}")
    try:
        return np.array(value, np.float64)
    except OverflowError:
        raise _Fault(f"{what} holds a number that is too large") from None


def _written(camera: PlaneCamera, wrap: bool) -> dict[str, Any]:
    camera = scaled(canonical(camera) if wrap else camera)
    return {
        "map_to_view": [_rounded(row) for row in camera.map_to_view],
        "eye": None if camera.eye is None else _rounded(camera.eye),
        "confidence": float(camera.confidence),
    }


def _rounded(numbers: npt.NDArray[np.float64]) -> list[float]:
    return [float(f"{number:.{_DIGITS}g}") for number in numbers]


def _shown(value: Any, limit: int = 60) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
