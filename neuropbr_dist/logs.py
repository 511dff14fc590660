"""Set-up of `logging`, by which the package says something; its lines stand on rank 0's stdout."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

SILENT = logging.CRITICAL + 1


class ConsoleHandler(logging.Handler):
    """Prints a record as one line on stdout, above a progress bar if one is up."""

    bar: Any = None
    """The `tqdm` bar that is up, if one is; whoever puts it up says so here."""
    outlive = False
    """A stdout that is gone (`| head` has ended, the log's disk is full) is said once on stderr, not raised."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname}: {text}"
        try:
            if self.bar is not None:
                self.bar.write(text, file=sys.stdout)
            else:
                print(text, flush=True)
        except OSError as error:
            if not self.outlive:
                raise
            self.bar = None
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is in the old one's buffer can't be flushed at the exit
            print(f"stdout: {error}; the run goes on and says no more here", file=sys.stderr, flush=True)


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
