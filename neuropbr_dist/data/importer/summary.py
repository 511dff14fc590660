"""ImportSummary of an import, which map was taken from which file: a table for the terminal and a file, and pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuropbr_dist.data.importer.sheet import write_sheets
from neuropbr_dist.files import write_text
from neuropbr_dist.materials.channels import MAP_NAMES
from neuropbr_dist.table import aligned

TABLE = "import.txt"
_HEAD = ("material", "px", "folder", *MAP_NAMES, "remarks")


@dataclass(frozen=True)
class Row:
    """One material."""

    name: str
    taken: dict[str, str]
    """Map to file, `:r` to `:a` a channel of it, `~` inverted."""
    side: int = 0
    """Side in pixels; 0 where nothing was made."""
    notes: list[str] = field(default_factory=list)
    reason: str = ""
    """Reason why it was left out, '' where it wasn't."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Licence, source, …"""
    validation: bool | None = None
    """Whether it is on the validation side of its library's split; None: that has none."""


@dataclass(frozen=True)
class ImportSummary:
    """All that an import did. `str(summary)` is the table that a person reads."""

    rows: list[Row]
    strays: list[str]
    """Pictures that weren't understood, or that no material needed."""

    @property
    def clean(self) -> bool:
        """Whether nothing was left out."""
        return not self.strays and not any(row.reason for row in self.rows)

    @property
    def imported(self) -> list[Row]:
        """The materials that were written."""
        return [row for row in self.rows if not row.reason]

    def __str__(self) -> str:
        lines = aligned([_HEAD, *map(_cells, self.imported)]) if self.imported else []
        lines += [f"left out  {row.name}: {row.reason}" for row in self.rows if row.reason]
        lines += [f"not understood  {stray}" for stray in self.strays]
        return "\n".join([*lines, self.summary])

    @property
    def summary(self) -> str:
        """The summary, in one line."""
        sides = Counter(row.side for row in self.imported)
        told = ", ".join(f"{count} of {side} px" for side, count in sorted(sides.items()))
        parts = [f"{len(self.imported)} materials imported" + (f" ({told})" if told else "")]
        left_out = len(self.rows) - len(self.imported)
        parts += [f"{left_out} left out"] if left_out else []
        parts += [f"{len(self.strays)} pictures not understood"] if self.strays else []
        return ", ".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    """Return a line of the table: files without the folder that they have in common."""
    folders = {os.path.dirname(file.lstrip("~")) for file in row.taken.values()}
    folder = os.path.commonpath(folders) if folders else ""
    files = [
        row.taken.get(name, "-").replace(f"{folder}/", "", 1) if folder else row.taken.get(name, "-")
        for name in MAP_NAMES
    ]
    return row.name, str(row.side), folder or "-", *files, "; ".join(row.notes)


def write_summary(summary: ImportSummary, dest: Path, strips: Path) -> None:
    """Write the table and the contact sheets.

    Args:
        strips: folder with the picture of each material, `sheet.write_strip`'s.

    Raises:
        OSError: they can't be written.
    """
    write_text(dest / TABLE, f"{summary}\n")
    write_sheets(dest, [(row.name, strips / f"{row.name}.jpg") for row in summary.imported])
