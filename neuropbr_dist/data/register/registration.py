"""The registration of a set: a table by material, and a sentence for each thing that a person should look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from neuropbr_dist.data.register.work import Outcome, ViewOutcome
from neuropbr_dist.table import aligned

_MOST_ROWS, _MOST_SENTENCES = 60, 100
_HEAD = ("material", "samples", "views", "found", "doubtful", "not found", "correlation")


@dataclass(frozen=True)
class Registration:
    """All that was found. `str(registration)` is the table that a person reads."""

    outcomes: list[Outcome]
    """Outcomes by sample name."""
    remarks: list[str] = field(default_factory=list)
    """Sentences about the set."""

    @property
    def share(self) -> float:
        """Share of all views that have a camera that is sure."""
        views = [view for outcome in self.outcomes for view in outcome.all_views]
        return sum(view.found for view in views) / len(views) if views else 0.0

    def __str__(self) -> str:
        by_material: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            by_material.setdefault(outcome.material, []).append(outcome)
        rows = [_row(material, outcomes) for material, outcomes in sorted(by_material.items())]
        if len(rows) > _MOST_ROWS:  # those where all is well would hide the others
            rows = [row for row in rows if row[2] != row[3]][:_MOST_ROWS]
        rows.append(_row(f"all {len(by_material)}", self.outcomes))
        sentences = [
            *self.remarks,
            *(sentence for outcome in self.outcomes for sentence in _sentences(outcome)),
        ]
        more = len(sentences) - _MOST_SENTENCES
        lines = [*aligned([_HEAD, *rows], numbers=True), *sentences[:_MOST_SENTENCES]]
        return "\n".join([*lines, *([f"and {more} more"] if more > 0 else [])])


def _row(name: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    views = [view for outcome in outcomes for view in outcome.all_views]
    found = [view for view in views if view.found]
    doubtful = [view for view in views if view.map_to_view is not None and not view.found]
    fits = [view.correlation for view in found if not view.kept]
    counts = len(outcomes), len(views), len(found), len(doubtful), len(views) - len(found) - len(doubtful)
    return name, *map(str, counts), f"{np.median(fits):.2f}" if fits else "-"


def _sentences(outcome: Outcome) -> list[str]:
    """Return a sentence for each view that isn't found, or one for all where all have the same reason."""
    who = f"{outcome.name} ({outcome.material})"
    found = [f"{who}: {remark}" for remark in outcome.remarks]
    for renders, views in outcome.views.items():
        reasons = [view.reason for view in views]
        if reasons[0] and len(set(reasons)) == 1:
            found.append(f"{who}, {renders} views: {_state(views[0])}: {reasons[0]}")
            continue
        found += [
            f"{who}, {renders} view {number}: {_state(view)}: {view.reason}"
            for number, view in enumerate(views)
            if view.reason
        ]
    return found


def _state(view: ViewOutcome) -> str:
    return "not found" if view.map_to_view is None else f"doubtful, confidence {view.confidence:.2f}"
