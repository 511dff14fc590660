"""What a test needs of the machine it runs on: without it the test skips, or fails where it must be there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

import pytest


def search_path() -> str:
    """Debian keeps daemons where an ordinary PATH doesn't lead."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def lacking(programs: Sequence[str], debian: str, namespaces: Sequence[str] = ()) -> str | None:
    """Why programs and namespaces can't be had here; None if they can.

    Args:
        debian: the packages that bring the programs.
        namespaces: `unshare`'s flags; they need root.
    """
    absent = [name for name in programs if shutil.which(name, path=search_path()) is None]
    if absent:
        return f"no {', '.join(absent)} on PATH (Debian: {debian})"
    if not namespaces:
        return None
    if os.geteuid() != 0:
        return "namespaces need root"
    tried = subprocess.run(["unshare", *namespaces, "true"], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def skip_or_fail(what: str, reason: str | None, variable: str) -> None:
    """Skip for `reason`, if there is one; with `variable` = 1 in the environment fail instead."""
    if reason:
        (pytest.fail if os.environ.get(variable) == "1" else pytest.skip)(f"{what}: {reason}")
