"""Set-up of `logging`, by which the package says something; its lines stand on rank 0's stdout."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

SILENT = logging.CRITICAL + 1


class ConsoleHandler(logging.Handler):
    """Prints a record as one line on stdout, above a progress bar if one is up."""

    bar: Any = None
    """The `tqdm` bar that is up, if one is; whoever puts it up says so here."""
    outlive = False
    """A stdout that is gone (`| head` has ended, the log's disk is full, the terminal is closed) is said once on stderr,
    not raised."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname}: {text}"
        with self.writing():
            if self.bar is not None:
                self.bar.write(text, file=sys.stdout)
            else:
                print(text, flush=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Guard whatever writes to stdout, lines or the bar; see `outlive`."""
        try:
            yield
        except OSError as error:
            if not self.outlive:
                raise
            self.bar = None
            _drop(sys.stdout)
            try:
                print(f"stdout: {error}; the run goes on and says no more here", file=sys.stderr, flush=True)
            except OSError:  # a closed terminal is both
                _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Let all that is written to a stream go nowhere from now on, also what its buffer still holds."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


CONSOLE = ConsoleHandler()


def to_console(rank: int = 0, *, outlive: bool = False, default: bool = False) -> None:
    """Print what the package's loggers say from level INFO on, on rank 0; the other ranks stay silent.

    Args:
        rank: this process's.
        outlive: go on without a stdout that is gone.
        default: leave all as it is where the calling program has set up logging on its own.
    """
    package = logging.getLogger(__package__)
    if CONSOLE not in package.handlers:
        if default and package.hasHandlers():
            return
        package.addHandler(CONSOLE)
        package.propagate = False  # a library that sets up the root logger would have every line twice
    package.setLevel(logging.INFO if rank == 0 else SILENT)
    CONSOLE.outlive = outlive
