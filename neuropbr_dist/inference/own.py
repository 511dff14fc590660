"""Materials of one's own to predict: renders as they are or with known cameras, or photos, which find their cameras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neuropbr_dist.config import DataConfig
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.cameras import CAMERAS_FILE, NOT_KNOWN, CameraSet, read_cameras
from neuropbr_dist.data.files.decode import read_picture
from neuropbr_dist.data.files.layout import list_faults
from neuropbr_dist.data.photos.aligned import Aligned, as_they_are
from neuropbr_dist.data.photos.read import SUFFIXES, Photo, read_photo
from neuropbr_dist.data.photos.rectified import rectified, stretched
from neuropbr_dist.data.register import require_opencv
from neuropbr_dist.errors import UserError, some
from neuropbr_dist.files import realpath
from neuropbr_dist.inference.subject import Subject, owned

VIEWS = 3
SMALLEST_SIDE = 64
"""Smallest side of a photo in pixels."""
WANTS_ALIGNMENT = (
    "the model was trained on views as they are; these photos want one trained with model.align = plane"
)


@dataclass(frozen=True)
class Own:
    """A folder with one to three pictures of a material, or with such folders.

    Args:
        folder: where.
        cameras: `auto` registers photos to each other, `none` takes each as it is; else a camera file. None: the
            folder's own `cameras.json`, without one `auto`; a model that takes views as they are takes three PNG
            renders so.
        reference: number of the photo, by name, that says where up is (`auto`).
    """

    folder: Path
    cameras: str | None = None
    reference: int | None = None


@dataclass(frozen=True)
class Wanted:
    """Input that the model takes.

    Args:
        on_plane: it rectifies views by their cameras.
        data: the run's; `image_size` is the side of the views, or None.
        multiple: sides are multiples of it.
        size_said: the side was said for this call; else photos aren't enlarged to it.
    """

    on_plane: bool
    data: DataConfig
    multiple: int
    size_said: bool

    def side(self, native: int) -> int:
        """Return the side of views that could be `native` pixels without loss."""
        size = self.data.image_size
        if size is not None and (self.size_said or size <= native):
            return size
        return max(native // self.multiple, 1) * self.multiple


def open_own(own: Own, wanted: Wanted, out: Path) -> Iterator[tuple[Subject, Path]]:
    """Yield each material, and the folder that its maps go to.

    Raises:
        UserError: a picture or a camera can't be used.
    """
    if realpath(own.folder) == realpath(out):
        raise UserError(f"--out-dir {out}: the same as --input-dir; name another folder")
    folders = find_folders(own.folder, skip=out)
    as_renders = not wanted.on_plane and own.cameras is None
    if as_renders and all(path.suffix.lower() == ".png" for folder in folders for path in pictures(folder)):
        check_counts(folders, (VIEWS, VIEWS), "exactly three PNG files are needed")
        for folder in folders:
            yield open_renders(folder, wanted.data.image_size), placed(folder, own, out)
        return
    check_counts(folders, (1, VIEWS), "one to three pictures (PNG, JPEG, HEIC) are needed")
    file = camera_file(own)
    known = None if file is None else read_camera_file(file)
    for folder in folders:
        if known is not None and wanted.on_plane:
            cameras = known_cameras(known, file, folder, wanted.data)  # type: ignore[arg-type]
            yield open_known(folder, cameras, wanted), placed(folder, own, out)
        elif known is not None:
            raise UserError(f"--cameras {own.cameras}: {WANTS_ALIGNMENT}")
        else:
            yield open_photos(folder, own, wanted), placed(folder, own, out)


def placed(folder: Path, own: Own, out: Path) -> Path:
    """Return where a material's maps go."""
    return out if folder == own.folder else out / folder.name


# -- folders -------------------------------------------------------------------------------


def pictures(folder: Path) -> list[Path]:
    """Return a folder's pictures, by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def find_folders(folder: Path, skip: Path) -> list[Path]:
    """Return `folder` itself where it holds pictures, or every folder in it.

    Args:
        skip: not looked into: results of an earlier call.

    Raises:
        UserError: `folder` is missing, or `skip` holds what may be somebody's pictures.
    """
    if not folder.is_dir():
        raise UserError(f"--input-dir {folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    if skip.is_dir() and realpath(skip).parent == realpath(folder) and 0 < len(pictures(skip)) <= VIEWS:
        raise UserError(f"--out-dir {skip}: holds pictures of a material itself; name another folder")
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    inside = [path for path in inside if realpath(path) != realpath(skip)]
    return [folder] if pictures(folder) or not inside else inside


def check_counts(folders: Sequence[Path], allowed: tuple[int, int], needed: str) -> None:
    """Raise a UserError unless each of the folders holds an allowed number of pictures."""
    faults = []
    for folder in folders:
        names = [path.name for path in pictures(folder)]
        if not allowed[0] <= len(names) <= allowed[1]:
            found = f": {some(names, 5)}" if names else ""
            faults.append(f"{folder}: {needed}, found {len(names)}{found}")
    if faults:
        raise UserError("; ".join(faults[:5]))


# -- renders and photos ----------------------------------------------------------------------


def open_renders(folder: Path, size: int | None, cameras: Tensor | None = None) -> Subject:
    """Return the three PNG files of a folder as views, in alphabetical order.

    Args:
        size: side in pixels to resize to; None: the files' own.
        cameras: (3, 14) of the views, in the same order.

    Raises:
        UserError: a file can't be read or isn't square, or the three differ in size.
    """
    paths = pictures(folder)
    views = [read_picture(path, "view", size) for path in paths]
    for path, view in zip(paths, views, strict=True):
        if view.shape != views[0].shape:
            sides = f"{view.shape[1]} px a side, but {paths[0]} has {views[0].shape[1]}"
            raise UserError(f"{path}: {sides}; --size N resizes all to one size")
    return subject("Renders", folder, paths, owned(np.stack(views)), cameras)


def open_known(folder: Path, cameras: Tensor, wanted: Wanted) -> Subject:
    """Return pictures whose cameras are known: three square PNG renders to the bit, photos resized to squares.

    A camera speaks of shares of the picture's width and height, so it holds for the resized picture as well.
    """
    paths = pictures(folder)
    photos = [read_photo(path) for path in paths]
    renders = all(path.suffix.lower() == ".png" for path in paths) and len(paths) == VIEWS
    if renders and all(photo.width == photo.height for photo in photos):
        return open_renders(folder, wanted.data.image_size, cameras)
    side = wanted.side(max(min(photo.width, photo.height) for photo in photos))
    cameras[len(photos) :] = 0
    return subject("Photos", folder, paths, stretched(photos, side), cameras)


def open_photos(folder: Path, own: Own, wanted: Wanted) -> Subject:
    """Return photos in the plane's own frame; each as it is where there is one, or with `--cameras none`.

    Raises:
        UserError: the photos fit no plane, or the model needs three and there are fewer.
    """
    paths = pictures(folder)
    if own.reference is not None and not 0 <= own.reference < len(paths):
        raise UserError(f"--reference {own.reference}; allowed: 0 to {len(paths) - 1} ({folder})")
    photos = [read_photo(path) for path in paths]
    for photo in photos:
        if min(photo.width, photo.height) < SMALLEST_SIDE:
            raise UserError(
                f"{photo.path}: {photo.width} x {photo.height} px; a photo has {SMALLEST_SIDE} px or more a side"
            )
    aligned = aligned_photos(photos, own, folder)
    views, cameras = rectified(aligned, wanted.side(aligned.resolution))
    remarks = list(aligned.remarks)
    if not wanted.on_plane:
        if sum(camera is not None for camera in aligned.cameras) < VIEWS:
            raise UserError(f"{folder}: {' '.join([*remarks, ''])}{WANTS_ALIGNMENT}: it needs three views")
        remarks.append(f"{WANTS_ALIGNMENT[0].upper()}{WANTS_ALIGNMENT[1:]}.")
    return subject("Photos", folder, paths, views, cameras if wanted.on_plane else None, remarks)


def aligned_photos(photos: Sequence[Photo], own: Own, folder: Path) -> Aligned:
    """Return how photos see their frame, as `--cameras` asks."""
    if own.cameras == "none" or len(photos) == 1:
        return as_they_are(photos)
    require_opencv()
    from neuropbr_dist.data.photos.align import align

    try:
        return align(photos, own.reference)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def subject(
    what: str,
    folder: Path,
    paths: Sequence[Path],
    views: Tensor,
    cameras: Tensor | None,
    remarks: Sequence[str] = (),
) -> Subject:
    """Return a folder's pictures as a subject."""
    name = realpath(folder).name
    label = f"{what} {', '.join(path.name for path in paths)} of {folder}"
    return Subject(name, name, label, views, cameras=cameras, remarks=tuple(remarks))


# -- cameras ---------------------------------------------------------------------------------


def camera_file(own: Own) -> Path | None:
    """Return the camera file that is meant; None: there is none, cameras are to be found.

    Raises:
        UserError: it is named and isn't there.
    """
    if own.cameras in ("auto", "none"):
        return None
    if own.cameras is None:
        beside = own.folder / CAMERAS_FILE
        return beside if beside.exists() else None
    if not Path(own.cameras).is_file():
        raise UserError(
            f"--cameras {own.cameras}: no such file; allowed: auto, none, or a camera file (docs/data.md)"
        )
    return Path(own.cameras)


def read_camera_file(path: Path) -> CameraSet:
    """Return a camera file's samples. Raises a UserError for one that is wrong."""
    found = read_cameras(path)
    if found.faults:
        raise UserError(list_faults(fault.message for fault in found.faults))
    return found


def known_cameras(known: CameraSet, path: Path, folder: Path, data: DataConfig) -> Tensor:
    """Return the cameras (3, 14) of a folder's pictures: samples go by the folders' names.

    Raises:
        UserError: there is no camera that counts.
    """
    name = realpath(folder).name
    rows = known.samples[name].encoded("clean") if name in known.samples else NOT_KNOWN
    cameras = torch.from_numpy(
        Alignment(min_confidence=data.min_confidence, views=data.views).of(rows, 0, name)
    )
    if not cameras[: len(pictures(folder))].any():
        raise UserError(f"{path}: {name}: no view has a camera of confidence {data.min_confidence} or more")
    return cameras
