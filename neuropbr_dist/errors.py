"""The one exception that stands for a mistake a person can mend."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Bad input: the message alone must let a person act.

    It names the file or field, what was found and what is allowed. Launch
    scripts print it on one line and exit with code 2; a traceback is shown
    under ``--debug`` only.
    """


def some(names: Iterable[str], limit: int = 3) -> str:
    """Return the first of some names, and how many there are besides: `a, b, c and 4 more`."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


@contextmanager
def running(file: Path) -> Iterator[None]:
    """Guard the execution of a user's Python file: whatever it raises, `sys.exit` included, is theirs to mend.

    Raises:
        UserError: the exception and the file's line that raised it; a `UserError` of the file's own is left as it is.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
        text = str(error)
        if isinstance(error, SyntaxError):
            frames.append((error.filename or "", error.lineno or 0))
            text = error.msg
        lines = [line for name, line in frames if line and Path(name) == file.absolute()]
        where = f"{file}, line {lines[-1]}" if lines else str(file)
        what = " ".join(f"{type(error).__name__}: {text}".split()).removesuffix(":")
        raise UserError(f"{where}: {what}") from error
