"""Files that appear whole or not at all, and files of JSON lines that survive a crash."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import stat
import tokenize
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neuropbr_dist.errors import UserError

log = logging.getLogger(__name__)

NOT_AN_ARRAY = (EOFError, ValueError, TypeError, OverflowError, SyntaxError, tokenize.TokenError)
"""Errors that numpy raises on a `.npy` file that is empty, cut, forged or something else: its header is a
Python literal."""
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp(\..*)?")


@contextmanager
def writing(path: Path, remedy: str = "") -> Iterator[None]:
    """Guard whatever writes `path`, or into it: what the system refuses becomes a person's to mend.

    Args:
        remedy: what the message ends with.

    Raises:
        UserError: names the file that the system named, else `path`, and its reason.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{error.filename or path}: can't be written: {reason}{remedy}") from error


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its place by one rename at the end.

    The temporary name is this call's own, so that two writers never share one, and it ends as `path` does, for
    writers that go by the suffix. Whatever ends the block early, a full disk or Ctrl-C, leaves nothing behind.

    Args:
        durable: flush the file and its folder to the device first; a crash of the machine then loses neither.

    Raises:
        OSError: it can't be written; the error names `path`.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    except OSError as error:
        _name(path, temporary, error)
        raise
    finally:
        with suppress(OSError):  # after the rename there is none; else the first error is the one to tell
            temporary.unlink()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `path`, which takes its place by one rename at the end.

    Raises:
        OSError: it can't be written, or `path` is there and isn't an empty folder; the error names `path`.
    """
    temporary = _temporary(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        _name(path, temporary, error)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_folder(folder: Path, place: Path) -> None:
    """Move a whole folder to another name on the same file system, where nothing or an empty folder is.

    Raises:
        OSError: it can't be moved.
    """
    os.replace(folder, place)


def remove_leftovers(folder: Path, suffixes: Collection[str] | None = None, *, deep: bool = False) -> None:
    """Delete what writers that were killed have left in a folder. For the only process that writes such files there.

    Args:
        suffixes: of the files whose writers are meant; None: all, folders too.
        deep: in the folders below it, too.

    Raises:
        OSError: it can't be deleted.
    """
    for path in sorted((folder.rglob if deep else folder.glob)(".*")):  # a folder before what is in it
        found = _TEMPORARY.fullmatch(path.name)
        if found and os.path.lexists(path) and (suffixes is None or (found[1] or "") in suffixes):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_bytes(path: Path, content: bytes | memoryview, *, durable: bool = False) -> None:
    """Write bytes by `replacing`.

    Also for libraries that write files of their own: numpy's doesn't say why it can't write, and torch's may end
    the process then. Both write into an `io.BytesIO` as well.
    """
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write UTF-8 text by `replacing`."""
    write_bytes(path, text.encode(), durable=durable)


def write_json(path: Path, content: Any, *, durable: bool = False, indent: int | None = None) -> None:
    """Write JSON (no NaN, no infinity) by `replacing`, with a newline at its end."""
    write_text(path, json.dumps(content, allow_nan=False, indent=indent) + "\n", durable=durable)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names (where the file system can), to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def realpath(path: Path) -> Path:
    """Return where a path leads, links followed; of links that lead in a circle, the path itself, where
    `Path.resolve` raises before Python 3.13."""
    return Path(os.path.realpath(path))


def check_links(folder: Path) -> None:
    """Raise a UserError for a symbolic link in a folder, at any depth, that leads out of it: to others' files."""
    home = os.path.realpath(folder)
    for place, folders, names in os.walk(folder):
        for link in filter(os.path.islink, (os.path.join(place, name) for name in [*folders, *names])):
            if not os.path.realpath(link).startswith(home + os.sep):
                raise UserError(
                    f"{link}: a link to {os.readlink(link)}; nothing outside of {folder} is touched: delete the link, or "
                    "put there what it leads to"
                )


class JsonLines:
    """A file of JSON values, one a line, that only grows.

    One rule for what a crash leaves: a last line without its newline is not there; any other line that isn't
    good is left out, with a warning that names it. Where no line is good, and not all of them can be a crash's
    (begun objects, holes of NUL bytes), the file isn't ours: it is neither read nor rewritten.

    Args:
        path: the file; it appears with the first line.
        what: what the file is, for messages.
        valid: whether a value can be a line of this file; any JSON object if not given.
    """

    def __init__(
        self, path: Path, what: str = "a log of this package", valid: Callable[[Any], bool] | None = None
    ) -> None:
        self.path, self.what = path, what
        self.valid = valid or (lambda value: isinstance(value, dict))

    def append(self, value: Any) -> None:
        """Hand one more line to the operating system, whole or not at all.

        Raises:
            UserError: it can't be written (disk full, say).
            ValueError: the value holds a NaN or an infinity, which JSON hasn't.
        """
        line = json.dumps(value, allow_nan=False).encode() + b"\n"
        if (
            os.path.isfile(self.path) and self.path.stat().st_nlink > 1
        ):  # of a backup, or somebody's: it stays
            with writing(self.path):
                write_bytes(self.path, self._content(), durable=True)
        with writing(self.path), open(self.path, "ab+", buffering=0, opener=_no_link) as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line  # a line that a crash tore must not swallow this one
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise

    def read(self) -> list[Any]:
        """Return the good lines' values, in order; none if there is no file.

        Raises:
            UserError: the file can't be read, or isn't ours.
        """
        return [value for _, value in self._good(self._content())]

    def keep(self, wanted: Callable[[Any], bool]) -> list[Any]:
        """Return the values of the good lines that are `wanted`, and rewrite the file, durably, if it holds more.

        Raises:
            UserError: the file can't be read or written, or isn't ours.
        """
        content = self._content()
        kept = [(line, value) for line, value in self._good(content) if wanted(value)]
        lines = b"".join(line + b"\n" for line, _ in kept)
        if lines != content:
            with writing(self.path):
                write_bytes(self.path, lines, durable=True)
        return [value for _, value in kept]

    def _content(self) -> bytes:
        return read_bytes(self.path, 1 << 40) if os.path.lexists(self.path) else b""

    def _good(self, content: bytes) -> list[tuple[bytes, Any]]:
        """Return the good lines, each as it stands in the file and as a value."""
        lines = content.split(b"\n")
        good: list[tuple[bytes, Any]] = []
        damaged: list[int] = []
        foreign: list[int] = []
        for number, line in enumerate(lines, 1):
            value, whole = _value(line), number < len(lines)
            fits = value is not None and self.valid(value)
            if fits and whole:
                good.append((line, value))
            elif line and whole:
                damaged.append(number)
            if line and not fits and (value is not None or not _from_a_crash(line)):
                foreign.append(number)
        if foreign and not good:
            raise UserError(f"{self.path}: not {self.what} (line {foreign[0]}); delete it or name another")
        if damaged:
            log.warning("%s: %d damaged line(s) left out, the first is line %d",
                        self.path, len(damaged), damaged[0])  # fmt: skip
        return good


SMALL = 1 << 20
"""Bytes; no file of settings that a person writes is larger."""


def read_bytes(path: str | os.PathLike, limit: int = 1 << 30) -> bytes:
    """Return the content of a file from outside, once it is known to be a file and of a size to read.

    Raises:
        UserError: it is missing, no regular file (a pipe would be waited for, a device has no end), larger than
            `limit` bytes, or can't be read.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: not a file")
            if status.st_size > limit:
                raise UserError(f"{path}: {status.st_size:,} bytes; allowed: {limit:,}")
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise UserError(f"{path}: can't be read: {getattr(error, 'strerror', error)}") from error


def read_text(path: str | os.PathLike, limit: int = SMALL) -> str:
    """Return the UTF-8 text of a file from outside, as `read_bytes`.

    Raises:
        UserError: see `read_bytes`; or it isn't UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error


def read_json(path: str | os.PathLike, limit: int = 1 << 30) -> Any:
    """Return what a JSON file from outside holds. Keys may not repeat; NaN and infinities come through.

    Raises:
        UserError: see `read_text`; or it isn't JSON, a key stands twice in an object, or it is nested too deeply or
            holds a number too long to be read.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            times = Counter(name for name, _ in pairs)
            twice = next(name for name, count in times.items() if count > 1)
            raise UserError(f"{path}: {twice!r} appears more than once")
        return found

    try:
        return json.loads(read_text(path, limit), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: not JSON at {where}: {error.msg}") from error
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except ValueError as error:  # a whole number of more digits than Python reads
        raise UserError(f"{path}: {error}") from error


def require_file(path: Path) -> None:
    """Raise a UserError unless `path` is a regular file, for what a library opens itself."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(kind):
        raise UserError(f"{path}: not a file")


def _no_link(path: str, flags: int) -> int:
    """Open `path` unless it is a link: what lies elsewhere isn't ours to write."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{uuid.uuid4().hex}.tmp{path.suffix}")


def _name(path: Path, temporary: Path, error: OSError) -> None:
    """Let an error speak of `path`: nobody knows the temporary name, and a full disk names none."""
    named = Path(error.filename if isinstance(error.filename, str) else path)
    if named.is_relative_to(temporary):
        named = path / named.relative_to(temporary)
    if error.errno is not None:  # else the text is all it has, and a name would take its place
        error.filename = str(named)
        del error.filename2


def _value(line: bytes) -> Any:
    """Return what a line of JSON says; None if it isn't JSON."""
    with suppress(ValueError, RecursionError):
        return json.loads(line.decode())
    return None


def _from_a_crash(line: bytes) -> bool:
    """Return whether a bad line can be ours: begun and not ended, or with a hole that the disk never got."""
    return line.startswith((b"{", b"[")) or b"\0" in line
