"""Photos with the cameras that see the frame that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from neuropbr_dist.data.photos.read import Photo
from neuropbr_dist.materials.plane import PlaneCamera, scaled


@dataclass(frozen=True, eq=False)
class Aligned:
    """Photos, and the cameras that see their frame."""

    photos: Sequence[Photo]
    cameras: Sequence[PlaneCamera | None]
    """One a photo; None for one that is left out."""
    remarks: list[str] = field(default_factory=list)
    """Sentences: what is left out and why, and how well the others lie on each other."""

    @property
    def resolution(self) -> int:
        """Side of the frame, in pixels, at which the best view loses nothing."""
        pairs = zip(self.photos, self.cameras, strict=True)
        return int(max(_pixels(photo, camera) for photo, camera in pairs if camera is not None))


def _pixels(photo: Photo, camera: PlaneCamera) -> float:
    """Return how many pixels of a photo a side of the frame takes, in the photo's middle."""
    return float(np.sqrt(abs(np.linalg.det(scaled(camera).map_to_view)) * photo.width * photo.height))


def as_they_are(photos: Sequence[Photo], remarks: Sequence[str] = (), only: int | None = None) -> Aligned:
    """Return photos each of which is the frame itself: its middle square, seen straight on.

    Args:
        only: the one that is used; None: all are.
    """
    cameras: list[PlaneCamera | None] = []
    for number, photo in enumerate(photos):
        side = min(photo.width, photo.height)
        fits = np.array([[side / photo.width, 0, 0.5], [0, -side / photo.height, 0.5], [0, 0, 1.0]])
        camera = PlaneCamera(fits, np.array([0, 0, photo.focal / side]))
        cameras.append(camera if only in (None, number) else None)
    return Aligned(photos, cameras, list(remarks))
