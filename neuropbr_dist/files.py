"""Files that appear whole or not at all, and files of JSON lines that survive a crash."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neuropbr_dist.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its place by one rename at the end.

    The temporary name is this call's own, so that two writers never share one, and it ends as `path` does, for
    writers that go by the suffix. Whatever ends the block early, a full disk or Ctrl-C, leaves nothing behind.

    Args:
        durable: flush the file and its folder to the device first; a crash of the machine then loses neither.

    Raises:
        OSError: it can't be written.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `path`, which takes its place by one rename at the end.

    Raises:
        OSError: it can't be written, or `path` is there and isn't an empty folder.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write UTF-8 text by `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, *, durable: bool = False, indent: int | None = None) -> None:
    """Write JSON (no NaN, no infinity) by `replacing`, with a newline at its end."""
    write_text(path, json.dumps(content, allow_nan=False, indent=indent) + "\n", durable=durable)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class JsonLines:
    """A file of JSON objects, one a line, that only grows.

    One rule for what a crash leaves: a last line without its newline is not there; any other line that is no
    object is left out, with a warning that names it; a file in which no line is good isn't ours.

    Args:
        path: the file; it appears with the first line.
        what: what the file is, for messages.
        valid: whether an object can be a line of this file.
    """

    def __init__(
        self, path: Path, what: str = "a log of this package", valid: Callable[[Any], bool] | None = None
    ) -> None:
        self.path, self.what, self.valid = path, what, valid or (lambda _record: True)

    def append(self, record: Mapping[str, Any]) -> None:
        """Hand one more line to the operating system, in one call.

        Raises:
            OSError: it can't be written, or not whole (disk full).
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with open(self.path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line  # a line that a crash tore must not swallow this one
            written = file.write(line)
            if written < len(line):
                os.ftruncate(file.fileno(), size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def read(self) -> list[dict[str, Any]]:
        """Return the good lines' objects, in order; none if there is no file.

        Raises:
            UserError: the file can't be read, or holds lines of which none is good.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.path}: can't be read: {error.strerror}") from error
        lines = content.split(b"\n")[:-1]  # what follows the last newline isn't whole
        found, damaged = [], []
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            record = None
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
            if isinstance(record, dict) and self.valid(record):
                found.append(record)
            else:
                damaged.append(number)
        if damaged and not found:
            raise UserError(f"{self.path}: not {self.what} (line {damaged[0]}); delete it or name another")
        if damaged:
            log.warning(
                "%s: %d damaged line(s) left out, the first is line %d", self.path, len(damaged), damaged[0]
            )
        return found

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite the file with the good lines that are `wanted` alone; nothing if there is no file.

        Raises:
            UserError: see `read`.
            OSError: it can't be written.
        """
        if self.path.exists():
            lines = [json.dumps(record) + "\n" for record in self.read() if wanted(record)]
            write_text(self.path, "".join(lines))


def read_json(path: Path, *, limit: int = 1 << 30) -> Any:
    """Return what a JSON file from outside holds. Keys may not repeat; NaN and infinities come through.

    Args:
        limit: largest size in bytes.

    Raises:
        UserError: it is missing, no regular file, larger than `limit`, not UTF-8 or not JSON, a key stands
            twice in an object, or it is nested too deeply or holds a number too long to be read.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path}: {twice!r} appears more than once")
        return found

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: not a file")
        if status.st_size > limit:
            raise UserError(f"{path}: {status.st_size:,} bytes; allowed: {limit:,}")
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: not JSON at {where}: {error.msg}") from error
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except ValueError as error:  # a whole number of more digits than Python reads
        raise UserError(f"{path}: {error}") from error
