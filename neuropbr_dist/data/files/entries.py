"""Elements of a set in the guide's layout: samples, and the faults that keep samples out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from neuropbr_dist.materials.channels import MAP_NAMES

VIEW_FILES = ("0.png", "1.png", "2.png")
MAP_FILES = tuple(f"{name}.png" for name in MAP_NAMES)

Renders = Literal["clean", "dirty"]
CURRICULA: dict[int, tuple[Renders, ...]] = {0: ("clean",), 1: ("clean", "dirty"), 2: ("dirty",)}
"""Render curriculum -> the folders it draws from."""


class Entry(Protocol):
    """One element of a set: a sample from one of its render folders."""

    @property
    def name(self) -> str: ...
    @property
    def renders(self) -> str: ...
    @property
    def material(self) -> str: ...
    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Sample:
    """Three renders of a material and its four maps, as files."""

    name: str
    renders: Renders
    material: str
    views: tuple[Path, Path, Path]
    """`0.png`, `1.png`, `2.png`."""
    maps: tuple[Path, Path, Path, Path]
    """The four map files, in the order of `MAP_NAMES`."""
    cameras: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    """(3, 14) as `materials.plane.encode` gives them, or None: not known."""

    @property
    def key(self) -> str:
        """Name that is unique within a set: a sample may stand in both folders."""
        return f"{self.renders}/{self.name}"


@dataclass(frozen=True)
class Fault:
    """A fault that keeps samples out of training."""

    message: str
    samples: tuple[str, ...] = ()
    """Names of the samples that it touches."""
