"""The run's folder: which checkpoints are in it, under which names, and which may go.

    step_00001000/                      a save; never written to again
    step_00001234/
    latest                -> step_00001234
    best_model            -> step_00001000
    checkpoint_epoch_0010 -> step_00001000
    step_00001240.tmp-5e0c…/            a save under way, or one whose process died

A save appears by one rename of a finished folder, and nothing is written into a folder once it is
there. Names are relative symbolic links, each replaced by one rename. A save's manifest lists its
names too, so links that a killed process couldn't make are made later. The order of saves is the
manifest's serial, not the step: a run that went back to an older save and on from there is newer
than what it left behind.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import shutil
import uuid
from pathlib import Path

from neuropbr_dist.checkpoint.lock import FileLock
from neuropbr_dist.checkpoint.manifest import MANIFEST, MOST, TENSORS, Damaged, read_manifest
from neuropbr_dist.checkpoint.verify import verify
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import check_links, realpath, sync

log = logging.getLogger(__name__)

LATEST, BEST = "latest", "best_model"
FULL = (errno.ENOSPC, errno.EDQUOT)
_STEP = re.compile(r"step_\d+(-\d+)?")
_TEMPORARY = re.compile(r".+\.tmp-[0-9a-f]{32}")


def step_name(step: int) -> str:
    """Return the folder name of the save at `step`."""
    return f"step_{step:08d}"


def epoch_name(epoch: int) -> str:
    """Return the name of a periodic checkpoint, as in the training guide."""
    return f"checkpoint_epoch_{epoch:04d}"


def temporary_name(name: str) -> str:
    """Return a name for what isn't there yet, or is about to go.

    `retain` clears away folders of such names that a killed process left.
    """
    return f"{name}.tmp-{uuid.uuid4().hex}"


def find(path: str | os.PathLike) -> list[Path]:
    """Return the checkpoints that `path` may mean, newest first; damaged ones included. Empty: none there.

    A run's folder and the name `latest` in it mean all of the run's saves; a checkpoint or
    another name means that one alone.
    """
    path = Path(path)
    if path.name == LATEST and (path.is_symlink() or not path.exists()):
        return _saves(path.parent)
    if _is_checkpoint(path):
        return [realpath(path)]
    return _saves(path)


def check_outside(path: Path) -> None:
    """Raise a UserError for a place in a checkpoint: a file more in it makes it a damaged one."""
    real = realpath(path)
    for place in (real, *real.parents):
        if (place / MANIFEST).exists() and (place / TENSORS).exists():
            raise UserError(
                f"{path}: lies in a checkpoint, to which nothing is added; name a place outside of {place}"
            )


def free_name(folder: Path, name: str) -> Path:
    """Return `folder/name`, or `folder/name-2`, … if a step is saved again after a resume."""
    path, number = folder / name, 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}"
    return path


def next_serial(folder: Path) -> int:
    """Return one more than the highest serial number of a save in `folder`; 1 in an empty one."""
    serials = [_serial(path) for path in _saves(folder)]
    return min(MOST, 1 + max((int(serial) for serial in serials if serial < math.inf), default=0))


def update_links(folder: Path) -> None:
    """Point each name to the newest save that carries it.

    Raises:
        UserError: a name is taken by something that isn't a link, or can't be made one.
    """
    targets = {}
    for path in reversed(_saves(folder)):
        if _serial(path) < math.inf:
            targets.update(dict.fromkeys(read_manifest(path).names, path.name))
    for name, target in targets.items():
        link = folder / name
        if link.is_symlink() and os.readlink(link) == target:
            continue
        if link.exists() and not link.is_symlink():
            raise UserError(
                f"{link} is no link, as in a copy that followed links; delete it: this name is for a link to {target}"
            )
        fresh = folder / temporary_name(name)
        try:
            fresh.symlink_to(target)
            fresh.replace(link)
        except OSError as error:
            raise UserError(f"{link}: can't be made a link to {target}: {error.strerror}") from error


def check_folder(folder: Path) -> None:
    """Try out what a save needs of a run's folder, and mend its names, before anything is trained.

    What earlier saves left that were killed goes first: a disk that they have filled has room again. For the one
    process that holds the run's lock.

    Raises:
        UserError: see `update_links`; or it can't be written to, or holds a link that leads out of it.
    """
    check_links(folder)
    _clear_temporary(folder)
    probe = folder / temporary_name("probe")
    try:
        probe.mkdir()
        (probe / "file").touch()
        sync(probe / "file")
        sync(probe)
        moved = probe.rename(folder / temporary_name("probe"))
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        (moved / "link").symlink_to("file")
    except OSError as error:
        if error.errno in FULL:
            raise _unwritable(folder, error) from error
        raise UserError(
            f"{folder}: no symbolic link can be made here ({error.strerror}), and the names of saves are links; "
            "name a --checkpoint-dir on another file system"
        ) from error
    finally:
        shutil.rmtree(moved, ignore_errors=True)
    update_links(folder)


def retain(
    folder: str | os.PathLike,
    keep_latest: int,
    *,
    verified: set[Path] | None = None,
) -> None:
    """Delete what isn't needed any more: all but the newest `keep_latest` good saves and those with a name.

    Nothing is deleted before `keep_latest` newer saves have been verified, and nothing that is
    being read. Also mends links and clears away dead temporary folders. For one process that holds the
    run's lock, with no save under way.

    Args:
        keep_latest: at least 1.
        verified: saves that this process has verified before; extended in place.

    Raises:
        UserError: see `update_links`.
    """
    if keep_latest < 1:
        raise ValueError(f"keep_latest is {keep_latest}; at least one save must stay")
    folder = Path(folder)
    verified = set() if verified is None else verified
    _clear_temporary(folder)
    update_links(folder)
    saves = _saves(folder)
    named = {os.readlink(link) for link in folder.glob("*") if link.is_symlink()}
    disposable = [path for path in saves if path.name not in named]
    if len(saves) <= keep_latest or not disposable:
        return
    good: list[Path] = []
    for path in saves:
        if path not in verified and (faults := verify(path, alone=True)):
            log.warning(f"{path} is damaged: {faults[0]}")
            continue
        verified.add(path)
        good.append(path)
        if len(good) == keep_latest:
            break
    if len(good) == keep_latest:
        for path in disposable:
            if path not in good:
                _remove(path)


def clear(folder: str | os.PathLike) -> None:
    """Delete every checkpoint and name in a run's folder, for a start with `--overwrite`."""
    folder = Path(folder)
    for path in _saves(folder):
        _remove(path)
    for link in folder.glob("*"):
        if link.is_symlink() and _STEP.fullmatch(os.readlink(link)):
            link.unlink()
    _clear_temporary(folder)


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: can't be written to: {error.strerror}; name another --checkpoint-dir")


def _saves(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    here = realpath(folder)
    saves = [path for path in here.iterdir() if not path.is_symlink() and _is_checkpoint(path)]
    return sorted(saves, key=lambda path: (_serial(path), path.name), reverse=True)


def _is_checkpoint(path: Path) -> bool:
    # The name counts too: without its manifest a save is damaged, not absent.
    name = realpath(path).name
    if not path.is_dir() or _TEMPORARY.fullmatch(name):
        return False
    return bool(_STEP.fullmatch(name)) or (path / MANIFEST).exists()


def _serial(checkpoint: Path) -> float:
    """Return the save's place in the run's order. Unreadable ones count as newest, so that a load reports them."""
    try:
        return read_manifest(checkpoint).serial
    except (Damaged, UserError):
        return math.inf


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint unless someone reads it. It disappears by one rename, so never in parts."""
    lock = FileLock(checkpoint / MANIFEST)
    try:
        if (checkpoint / MANIFEST).is_file() and lock.acquire() is False:
            return
        doomed = checkpoint.with_name(temporary_name(checkpoint.name))
        checkpoint.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    except OSError as error:
        log.warning(f"{checkpoint} can't be deleted: {error.strerror}")
    finally:
        lock.release()


def _clear_temporary(folder: Path) -> None:
    for path in folder.glob("*.tmp-*"):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
