"""One to three photos of a surface -> how each sees the plane, in the plane's own frame.

The frame is the largest square, straight on, that all photos show; up is where the reference photo has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuropbr_dist.data.photos.aligned import Aligned, as_they_are
from neuropbr_dist.data.photos.frame import Square, area, largest_square
from neuropbr_dist.data.photos.links import Links, find_links
from neuropbr_dist.data.photos.pairs import Shown, ray_to_picture
from neuropbr_dist.data.photos.quality import compare, depth, sentence
from neuropbr_dist.data.photos.read import USUAL_FOCAL_35MM, Photo
from neuropbr_dist.data.photos.tilt import Layout, inverse, lay_out
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.plane import Matrix, PlaneCamera, project, scaled

_TOLD_SPREAD, _GUESSED_SPREAD = 0.03, 0.1  # of focal lengths: EXIF rounds them; phones have 23 to 28 mm
_INCONSISTENT = 5.0  # standard deviations
_MOST_TILT, _UNSURE_TILT = 65, 4  # degrees
_LEAST_FLAT, _LEAST_SHARED, _MOST_DEPTH = 0.8, 0.05, 0.1


def align(photos: Sequence[Photo], reference: int | None = None) -> Aligned:
    """Register photos to each other and find the plane that they show.

    Args:
        reference: the photo that says where up is; None: the first that is used.

    Raises:
        UserError: the reference can't be registered, or what was found is no way to photograph a surface.
    """
    if len(photos) == 1:
        return as_they_are(photos)
    shown = [Shown(photo) for photo in photos]
    links = find_links(shown)
    remarks = list(links.remarks)
    up = links.used[0] if reference is None else reference
    if up not in links.used:
        raise UserError(f"--reference {up}: {' '.join(remarks)}")
    if len(links.used) == 1:
        name = photos[up].path.name
        remarks.append(f"{name} alone is used: the picture itself is the frame, and its tilt isn't known.")
        return as_they_are(photos, remarks, up)
    told = all(photos[number].focal_told for number in links.used)
    if not told:
        remarks.append(f"EXIF tells no focal length: {USUAL_FOCAL_35MM:g} mm (35 mm equivalent) is assumed.")
    layout = _layout(links, _TOLD_SPREAD if told else _GUESSED_SPREAD)
    plane = _Plane(shown, links, layout, up)
    return Aligned(photos, plane.cameras(), remarks + plane.remarks())


def _layout(links: Links, spread: float) -> Layout:
    """Return the layout that all links agree on; where they contradict each other, that of the hub's own."""
    layout = lay_out(list(links.links.values()), links.hub, spread)
    if layout.error > _INCONSISTENT and len(links.links) > len(links.used) - 1:
        layout = lay_out([link for pair, link in links.links.items() if links.hub in pair], links.hub, spread)
    return layout


class _Plane:
    """The frame on the plane, and the photos over it."""

    def __init__(self, shown: Sequence[Shown], links: Links, layout: Layout, up: int) -> None:
        self.shown, self.links, self.layout, self.up = shown, links, layout, up
        out = -layout.normal
        above = layout.stations[up].turn.T @ np.array([0, -1.0, 0])
        above = above - (above @ out) * out
        above /= np.linalg.norm(above)
        self.axes = np.stack([np.cross(above, out), above, out])  # of the map, in the hub's camera space
        if max(layout.tilt(number) for number in links.used) > np.radians(_MOST_TILT):
            raise UserError(
                f"the photos fit each other only if one is tilted by more than {_MOST_TILT}°: do they show one plane?"
            )
        self.square = self._square()

    def _square(self) -> Square:
        to_rays = np.column_stack([*self.axes[:2], self.layout.normal])
        views = [self._picture(number) @ self._from_hub(number) @ to_rays for number in self.links.used]
        square = largest_square(views)
        if square is None:
            raise UserError("no square of the surface is shown by all photos; take them closer to each other")
        return square

    def _picture(self, number: int) -> Matrix:
        """Return the matrix from true rays to picture coordinates."""
        photo = self.shown[number].photo
        return ray_to_picture(photo, photo.focal * self.layout.zoom)

    def _from_hub(self, number: int) -> Matrix:
        """Return the matrix from the hub's true rays to a photo's."""
        layout, hub = self.layout, self.links.hub
        if number == hub:
            return np.eye(3)
        zoom = np.diag([layout.zoom, layout.zoom, 1.0])
        link = self.links.links[min(hub, number), max(hub, number)]
        across = zoom @ layout.homography(number) @ inverse(zoom)
        found = link.between(across) if link.first == hub else inverse(link.between(inverse(across)))
        return inverse(zoom) @ found @ zoom

    def map_to_rays(self, number: int) -> Matrix:
        """Return the matrix from map coordinates to a photo's true rays."""
        x, y = self.square.middle
        side = self.square.side
        right, above, _ = self.axes
        start = self.layout.normal + x * right + y * above
        return self._from_hub(number) @ np.column_stack([side * right, side * above, start])

    def cameras(self) -> list[PlaneCamera | None]:
        """Return the camera with which each photo sees the frame; None for a photo that isn't used."""
        found: list[PlaneCamera | None] = [None] * len(self.shown)
        for number in self.links.used:
            from_plane = self.axes @ (self.layout.stations[number].place - self.layout.normal)
            eye = (from_plane - [*self.square.middle, 0.0]) / self.square.side
            found[number] = scaled(PlaneCamera(self._picture(number) @ self.map_to_rays(number), eye))
        return found

    def remarks(self) -> list[str]:
        """Say how well the photos lie on each other, and what is doubtful."""
        used, hub = self.links.used, self.links.hub
        names = [shown.photo.path.name for shown in self.shown]
        tilts = ", ".join(f"{np.degrees(self.layout.tilt(number)):.0f}°" for number in used)
        unsure, shared = np.degrees(self.layout.uncertainty), self._shared(self.up)
        zoom = np.diag([self.layout.zoom, self.layout.zoom, 1.0])  # `Shown` goes by the assumed focal length
        places = {number: zoom @ self.map_to_rays(number) for number in used}
        compared = [
            compare(self.shown[hub], self.shown[number], places[hub], places[number])
            for number in used
            if number != hub
        ]
        found = [
            f"{', '.join(names[number] for number in used)}: {sentence(compared)}; the frame takes {shared:.0%} of "
            f"{names[self.up]}; tilts {tilts} (± {unsure:.1f}°)."
        ]
        if unsure > _UNSURE_TILT:
            found.append("The tilt is uncertain: take the photos from places further apart.")
        if shared < _LEAST_SHARED:
            found.append("The photos share little: take them closer to each other.")
        if (flat := min(one.flat for one in compared)) < _LEAST_FLAT:
            found.append(
                f"Only {flat:.0%} of what looks alike is in its place: the maps may be blurred, or wrong."
            )
        if (deep := max(self._depth(number) for number in used if number != hub)) > _MOST_DEPTH:
            found.append(
                f"{deep:.0%} of the details that they share lie off the plane: this is no flat surface, and its maps are wrong."
            )
        return found

    def _depth(self, number: int) -> float:
        """Return the share of details off the plane, of the hub and another photo."""
        hub, station = self.links.hub, self.layout.stations[number]
        zoom = np.diag([self.layout.zoom, self.layout.zoom, 1.0])
        across = zoom @ self._from_hub(number) @ inverse(zoom)
        essential = station.turn @ np.cross(np.eye(3), station.place)
        return depth(self.shown[hub], self.shown[number], across, inverse(zoom) @ essential @ inverse(zoom))

    def _shared(self, number: int) -> float:
        """Return the frame's share of a photo's area."""
        corners = Square(np.zeros(2), 1.0).corners()
        return area(project(self._picture(number) @ self.map_to_rays(number), corners))
