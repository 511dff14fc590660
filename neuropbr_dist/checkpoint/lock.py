"""Locks: one run a folder, and no checkpoint deleted under its reader.

A run holds an flock on `run.lock` in its folder, and beats: it writes its record (host, process,
start, a count) into the same file every few seconds.

- Same machine: the kernel frees an flock when its process dies, in whatever way. So a free lock
  means a dead owner, and a held one a living owner. No waiting, nothing to clean up after a crash.
- Another machine on a shared file system: NFS (Linux 2.6.12 and later), Lustre mounted with `flock`,
  GPFS and CephFS carry an flock across machines, and the same holds. Where they don't (Lustre's
  `localflock`, NFS's `local_lock`) the lock looks free, but the record names another machine: the new run then
  watches it for a few beats. If the count moves the owner lives; if it stands still the owner is
  dead. Watching needs no synchronised clocks.
- File systems that refuse locks: the record alone decides, by watching.

Left over: two runs that start in the same few seconds on two machines whose file system has no common
locks. Both pass, and the next beat tells one of them: its record is gone, and `check` raises.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import socket
import stat
import threading
import time
import uuid
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from neuropbr_dist.errors import UserError
from neuropbr_dist.files import read_bytes, read_json
from neuropbr_dist.ranks import on_rank_0

LOCK_FILE = "run.lock"
RECORD_BYTES = 512
"""The record is padded to this, so that a rewrite in place is one small write."""
BEAT_SECONDS = 5.0
DEAD_AFTER_BEATS = 4


class FileLock:
    """An flock on a file, which an exclusive one makes if it is missing.

    It ends with this process: forked children don't keep it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor: int | None = None
        _open_locks.add(self)

    def acquire(self, *, shared: bool = False) -> bool | None:
        """Try to lock the file, and return whether it is held now.

        False: another holder is in the way. None: this file system has no locks.
        """
        # An exclusive lock on NFS needs a file opened for writing; a reader may not be allowed to write.
        flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
        self.descriptor = os.open(self.path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            self.release()
            raise OSError(errno.EINVAL, "not a file", str(self.path))
        try:
            fcntl.flock(self.descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        except OSError:  # file systems have many words for it
            return None
        return True

    @property
    def in_place(self) -> bool:
        """Whether the file that is held still lies under its name: its folder may have been moved, or replaced."""
        assert self.descriptor is not None
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False
        except OSError:
            return True  # a shared file system's hiccup

    def release(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


_open_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _drop_in_child() -> None:
    # Data workers may outlive a killed trainer for some seconds; an inherited descriptor would keep the lock.
    for lock in _open_locks:
        lock.release()


os.register_at_fork(after_in_child=_drop_in_child)


class RunLock:
    """The right to write into a run's folder: a context manager, entered on all ranks, held by the first.

    Args:
        who, remedy: what is refused, and what to do about it, for the message.

    Raises:
        UserError: on entry, on all ranks: another run holds the folder (its host, pid and start are named).
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        process_group: dist.ProcessGroup | None = None,
        beat_seconds: float = BEAT_SECONDS,
        who: str = "run",
        remedy: str = "stop that run, or choose another --checkpoint-dir",
    ) -> None:
        self.path = Path(folder) / LOCK_FILE
        self.who, self.remedy = who, remedy
        self.beat_seconds = beat_seconds
        self._group = process_group
        self._lock = FileLock(self.path)
        self._record: dict[str, Any] = {}
        self._usurper: dict[str, Any] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)

    def __enter__(self) -> RunLock:
        on_rank_0(self._acquire, self._group)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def check(self) -> None:
        """Raise UserError if the folder isn't this run's any more; local, of use on the first rank."""
        if self._usurper is not None:
            raise UserError(
                f"{self.path.parent} was taken over by {_describe(self._usurper)}: this run must end"
            )
        if self._lock.descriptor is not None and not self._lock.in_place:
            raise UserError(
                f"{self.path.parent} was renamed, deleted or replaced under this {self.who}, which must end: it holds "
                "no other folder"
            )

    def release(self) -> None:
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join()
            if self._usurper is None:
                assert self._lock.descriptor is not None
                # A disk that takes nothing any more: why the run ends is said already.
                with suppress(OSError):
                    os.ftruncate(self._lock.descriptor, 0)
        self._lock.release()

    def _acquire(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            free = self._lock.acquire()
        except OSError as error:
            raise UserError(f"{self.path}: can't be locked: {error.strerror}") from error
        if not _is_ours(self.path):
            self._lock.release()
            raise UserError(f"{self.path}: not a lock of this package, and not written to; delete it")
        owner = _read_record(self.path)
        if free is False:
            raise self._refusal(owner)
        trusted = free and owner.get("machine") == _machine()
        if owner and not trusted and self._is_beating(owner):
            self._lock.release()
            raise self._refusal(owner)
        self._record = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "beat": 0,
        }
        self._write_record()
        self._thread.start()

    def _is_beating(self, owner: dict[str, Any]) -> bool:
        for _ in range(2 * DEAD_AFTER_BEATS):
            time.sleep(self.beat_seconds / 2)
            now = _read_record(self.path)
            if not now:  # released meanwhile
                return False
            if now != owner:
                return True
        return False

    def _beat(self) -> None:
        while not self._stop.wait(self.beat_seconds):
            try:
                found = _read_record(self.path)
                if found and found.get("id") != self._record["id"]:
                    self._usurper = found
                    return
                self._record["beat"] += 1
                self._write_record()
            except OSError:
                continue  # a shared file system's hiccup; others wait for several beats before they take over

    def _write_record(self) -> None:
        assert self._lock.descriptor is not None
        os.pwrite(self._lock.descriptor, json.dumps(self._record).encode().ljust(RECORD_BYTES), 0)
        os.fsync(self._lock.descriptor)

    def _refusal(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"{self.path.parent} is in use by another {self.who}: {_describe(owner)}; {self.remedy}"
        )


def _machine() -> str:
    """Return the machine within which an flock can be trusted: this boot of this kernel. Containers on it share it."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return boot_id.read_text().strip() if boot_id.exists() else socket.gethostname()


def _read_record(path: Path) -> dict[str, Any]:
    """Return the owner's record; empty if there is none. Opened afresh: NFS shows other machines' writes on open."""
    try:
        record = read_json(path, RECORD_BYTES)
    except UserError:  # empty after a release
        return {}
    return record if isinstance(record, dict) else {}


def _is_ours(path: Path) -> bool:
    """Return whether a lock's file holds nothing, zeros that a crash left, or a record: it may be a link to anything."""
    content = read_bytes(path).strip(b"\0 ")
    return not content or (len(content) <= RECORD_BYTES and content.startswith(b'{"id": '))


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "it has just started"
    return f"host {owner.get('host')}, pid {owner.get('pid')}, since {owner.get('since')}"
