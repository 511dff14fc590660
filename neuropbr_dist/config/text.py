"""Reading a file that the user named."""

from __future__ import annotations

from pathlib import Path

from neuropbr_dist.errors import UserError


def read_text(path: str | Path, flag: str) -> str:
    """The whole file; `flag` is what named it.

    Raises:
        UserError: no such file, no right to read it, a folder, or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: not UTF-8 text (byte {error.start})") from error
    except FileNotFoundError as error:
        raise UserError(f"{flag} {path}: no such file") from error
    except OSError as error:
        raise UserError(f"{flag} {path}: can't be read: {error.strerror}") from error
