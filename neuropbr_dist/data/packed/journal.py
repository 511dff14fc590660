"""What is done already, one JSON value a line, so that an interrupted command goes on where it was."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from neuropbr_dist.errors import UserError


class Journal:
    """A file of JSON lines that only grows; a context manager.

    Args:
        path: None keeps nothing.
        what: what the file is, for messages.
    """

    def __init__(self, path: Path | None, what: str) -> None:
        self.path, self.what = path, what
        self._descriptor: int | None = None

    def __enter__(self) -> Journal:
        if self.path is not None:
            try:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            except OSError as error:
                raise UserError(f"{self.path}: can't be written: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def read(self, is_valid: Callable[[Any], bool]) -> list[Any]:
        """All whole lines; one that was interrupted while it was written is cut off.

        Raises:
            UserError: A line is not JSON, or `is_valid` says no.
        """
        if self._descriptor is None:
            return []
        assert self.path is not None
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._descriptor, whole)
        lines = []
        for number, text in enumerate(content[:whole].splitlines(), 1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if line is None or not is_valid(line):
                raise UserError(f"{self.path}: not {self.what} (line {number}); delete it or name another")
            lines.append(line)
        return lines

    def append(self, value: Any) -> None:
        """One more line, handed to the operating system before this returns.

        Raises:
            UserError: It can't be written, or not whole (disk full).
        """
        if self._descriptor is None:
            return
        line = json.dumps(value).encode() + b"\n"
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from error
        if written < len(line):
            raise UserError(f"{self.path}: {os.strerror(errno.ENOSPC)}")
