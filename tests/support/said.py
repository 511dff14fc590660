"""What the package's loggers and errors say."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Kept(logging.Handler):
    """Keeps every message."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def said() -> Iterator[list[str]]:
    """The messages of what runs inside, as they come."""
    package, kept = logging.getLogger("neuropbr_dist"), Kept()
    level = package.level
    package.addHandler(kept)
    package.setLevel(logging.INFO)
    try:
        yield kept.lines
    finally:
        package.setLevel(level)
        package.removeHandler(kept)


def assert_names(error: object, parts: Iterable[str]) -> None:
    """An error of one line that holds each of `parts`."""
    text = str(error)
    assert "\n" not in text
    missing = [part for part in parts if part not in text]
    assert not missing, text
