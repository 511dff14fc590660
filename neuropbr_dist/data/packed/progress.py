"""The journal of a packed set: which tasks are done.

Its first line says from what the set is made; each other that a task is done, and is written once its record is on
disk. So a call that was interrupted at any byte goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuropbr_dist.data.files.picture_check import PictureCheck, is_picture_check
from neuropbr_dist.data.files.verify import STAMP, Stamp
from neuropbr_dist.data.packed.index import JOURNAL, METADATA, SHARDS, VERSION
from neuropbr_dist.data.packed.shards import REPACK, Place
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import JsonLines
from neuropbr_dist.kinds import fits


@dataclass(frozen=True)
class Done:
    """The outcome of a task. It has no place if a picture has a fault."""

    checks: list[PictureCheck]
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
        self.dest, self._lines = dest, JsonLines(dest / JOURNAL, "the journal of a packed set", _is_line)
        self._noted = self._lines.keep(lambda _: True)
        begun = {"version": VERSION, **origin}
        if not self._noted:
            self._begin(begun)
        elif self._noted[0] != begun:
            self._refuse(self._noted[0], begun)

    def done(self, wanted: Mapping[str, list[Stamp]]) -> dict[str, Done]:
        """Return the tasks of `wanted` that were done to files which are still the same."""
        sizes = {path.name: path.stat().st_size for path in (self.dest / SHARDS).iterdir()}
        done = {}
        for line in filter(lambda line: "task" in line, self._noted):
            place = Place(*line["place"]) if line["place"] else None
            # After a power cut the journal may name what the disk never got.
            lost = place is not None and sizes.get(place.shard, 0) < place.offset + place.nbytes
            if not lost and wanted.get(line["task"]) == [tuple(one) for one in line["stamps"]]:
                done[line["task"]] = Done([PictureCheck(**check) for check in line["checks"]], place)
        return done

    def note(self, task: str, stamps: list[Stamp], done: Done) -> None:
        """Note that one more task is done.

        Raises:
            UserError: It can't be written (disk full, say).
        """
        checks = [vars(check) for check in done.checks]
        self._lines.append({"task": task, "stamps": stamps, "checks": checks, "place": done.place})

    def _begin(self, begun: dict[str, Any]) -> None:
        if (self.dest / METADATA).exists():
            raise UserError(
                f"{self.dest}: holds a packed set without its {JOURNAL}, so nobody knows from which pictures; "
                "it can be trained on; to pack, delete that folder or name another"
            )
        self._lines.append(begun)

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


def _is_line(line: Any) -> bool:
    """Return whether a value is a line of a journal, also of an older version's: that is to be refused, not repaired."""
    if not isinstance(line, dict):
        return False
    if "version" in line:
        return {"input_dir", "output_dir"} < line.keys()
    kinds = {"task": str, "stamps": list, "checks": list, "place": (str, int, int, int, int)}
    line = line if line.get("place") is not None else {**line, "place": ["", 0, 0, 0, 0]}
    return (
        fits(line, kinds)
        and all(fits(stamp, STAMP) for stamp in line["stamps"])
        and all(map(is_picture_check, line["checks"]))
        and len(line["checks"]) == len(line["stamps"])
        and min(line["place"][1:]) >= 0
        and max(line["place"][3:]) < 2**32  # as the index holds them
    )
