"""What is packed already: the journal of a packed set.

Its first line says from what the set is made; each other that a task is done, and is written once its record is on
disk. So a call that was interrupted at any byte goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuropbr_dist.data.files.judge import Finding, is_finding
from neuropbr_dist.data.files.verify import Stamp
from neuropbr_dist.data.packed.index import HEAD, JOURNAL, SHARDS, VERSION
from neuropbr_dist.data.packed.shards import REPACK, Place
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import JsonLines, write_text

WHAT = "the journal of a packed set"


@dataclass(frozen=True)
class Done:
    """What became of a task. No place: a picture has a fault."""

    findings: list[Finding]
    place: Place | None


class Progress:
    """The tasks that are done in a folder; used by one process.

    Args:
        dest: the folder of the packed set.
        origin: from what it is made; another call must give the same.

    Raises:
        UserError: the folder holds what another origin, another version or another program has begun.
    """

    def __init__(self, dest: Path, origin: Mapping[str, Any]) -> None:
        self.dest, self._lines = dest, JsonLines(dest / JOURNAL, WHAT, _is_line)
        self._noted = self._lines.read()
        begun = {"version": VERSION, **origin}
        if not self._noted:
            self._begin(begun)
        elif self._noted[0] != begun:
            self._refuse(self._noted[0], begun)
        else:
            self._cut_torn_line()

    def done(self, wanted: Mapping[str, list[Stamp]]) -> dict[str, Done]:
        """The tasks of `wanted` that were done to files which are still the same."""
        sizes = {path.name: path.stat().st_size for path in (self.dest / SHARDS).iterdir()}
        done = {}
        for line in self._noted[1:]:
            place = Place(*line["place"]) if line["place"] else None
            # After a power cut the journal may name what the disk never got.
            lost = place is not None and sizes.get(place.shard, 0) < place.offset + place.nbytes
            if not lost and wanted.get(line["task"]) == [tuple(one) for one in line["stamps"]]:
                done[line["task"]] = Done([Finding(**finding) for finding in line["findings"]], place)
        return done

    def note(self, task: str, stamps: list[Stamp], done: Done) -> None:
        """One more task is done.

        Raises:
            UserError: It can't be written (disk full, say).
        """
        findings = [vars(finding) for finding in done.findings]
        try:
            self._lines.append({"task": task, "stamps": stamps, "findings": findings, "place": done.place})
        except OSError as error:
            raise UserError(f"{self._lines.path}: {error.strerror}") from error

    def _begin(self, begun: dict[str, Any]) -> None:
        path = self._lines.path
        if path.exists() and path.stat().st_size:  # the first line comes whole: this isn't ours
            raise UserError(f"{path}: not {WHAT}; delete it or name another")
        if (self.dest / HEAD).exists():
            raise UserError(
                f"{self.dest}: holds a packed set without its {JOURNAL}, so nobody knows from which pictures; "
                "it can be trained on; to pack, delete that folder or name another"
            )
        try:
            write_text(path, json.dumps(begun) + "\n", durable=True)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error

    def _cut_torn_line(self) -> None:
        """It isn't there, says `JsonLines`; left where it is, every later call would warn of it."""
        content = self._lines.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self._lines.path, whole)

    def _refuse(self, found: dict[str, Any], begun: dict[str, Any]) -> None:
        if "version" not in found:
            raise UserError(f"{self._lines.path}: its first line is damaged; {REPACK}")
        if found["version"] != VERSION:
            raise UserError(
                f"{self.dest}: packing was begun there in format version {found['version']}, "
                f"this program writes {VERSION}; {REPACK}"
            )
        changed = [f"{name} = {value}" for name, value in found.items() if begun.get(name) != value]
        raise UserError(
            f"{self.dest}: packing was begun there with {', '.join(changed)}; "
            "give the same, or delete that folder, or name another"
        )


def _is_line(line: dict[str, Any]) -> bool:
    if "version" in line:
        return True
    if line.keys() != {"task", "stamps", "findings", "place"} or not isinstance(line["task"], str):
        return False
    lists = isinstance(line["findings"], list) and isinstance(line["stamps"], list)
    return (
        lists
        and all(map(is_finding, line["findings"]))
        and all(isinstance(stamp, list) for stamp in line["stamps"])
        and (line["place"] is None or _is_place(line["place"]))
    )


def _is_place(value: Any) -> bool:
    return isinstance(value, list) and [type(part) for part in value] == [str, int, int, int, int]
