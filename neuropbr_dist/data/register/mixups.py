"""Samples none of whose views is found: do they show another of the set's materials?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neuropbr_dist.data.register.search import Settings
from neuropbr_dist.data.register.work import Job, Outcome, begin, likeness
from neuropbr_dist.processes import in_parallel

_MOST_SAMPLES, _MOST_MATERIALS = 8, 12
_ALIKE = 0.6


def mixed_up(jobs: Sequence[Job], outcomes: Sequence[Outcome], settings: Settings, workers: int) -> list[str]:
    """Return a sentence for each sample whose views look like another material of the set.

    The materials of other samples that weren't found are tried first: metadata mix-ups come in pairs. At most eight
    samples are looked at, twelve materials each.
    """
    lost = {outcome.name for outcome in outcomes if not any(view.found for view in outcome.all_views)}
    suspects = [job for job in jobs if job.name in lost][:_MOST_SAMPLES]
    if not suspects:
        return []
    maps = {job.material: job.maps for job in jobs}
    first = list(dict.fromkeys(job.material for job in jobs if job.name in lost))
    order = first + [material for material in maps if material not in first]
    tasks = [
        (job, material, maps[material])
        for job in suspects
        for material in [name for name in order if name != job.material][:_MOST_MATERIALS]
    ]
    best: dict[str, tuple[float, str]] = {}
    for (job, material, _), fit in in_parallel(_likeness, tasks, workers, begin, (settings,), chunk=1):
        if fit > max(_ALIKE, best.get(job.name, (0.0, ""))[0]):
            best[job.name] = fit, material
    return [
        f"{job.name}: its views show {best[job.name][1]}, not {job.material} (a mix-up in the metadata, or in the folders?)"
        for job in suspects
        if job.name in best
    ]


def _likeness(task: tuple[Job, str, tuple[Path, ...]]) -> float:
    job, _, maps = task
    return likeness(job, maps)
