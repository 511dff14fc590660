"""The cameras of a whole set, found in parallel and written to one file.

Whatever ends it, the same command goes on: a sample that is done stands in a journal beside the camera file, which is
written once, whole, at the end; then the journal goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from neuropbr_dist.data.cameras import CAMERAS_FILE, Cameras, SampleCameras, read_cameras, write_cameras
from neuropbr_dist.data.files.decode import read_picture
from neuropbr_dist.data.files.entries import Renders, Sample
from neuropbr_dist.data.files.layout import index_set, list_faults
from neuropbr_dist.data.files.verify import check_writable
from neuropbr_dist.data.register.mixups import mixed_up
from neuropbr_dist.data.register.registration import Registration
from neuropbr_dist.data.register.search import Prior, Settings
from neuropbr_dist.data.register.sheet import write_sheet
from neuropbr_dist.data.register.threads import one_thread_each
from neuropbr_dist.data.register.work import Job, Outcome, begin, is_line, register_sample
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import JsonLines, writing
from neuropbr_dist.processes import in_parallel

_PROBED = 12
_MOSTLY, _RARELY = 0.6, 0.2
_SEAM = 1.6
_SEAM_MATERIALS = 12


def register(
    input_dir: Path | str,
    output_dir: Path | str,
    metadata_path: Path | str | None = None,
    *,
    to: Path | None = None,
    sheet: Path | None = None,
    prior: Prior = "auto",
    field_of_view: float = 55.0,
    wrap: bool | None = None,
    overwrite: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> Registration:
    """Find each view's camera and write the set's camera file.

    Args:
        to: the camera file; None: `{input_dir}/cameras.json`.
        sheet: the contact sheet, a JPEG file; None: beside the camera file.
        prior: upstream's cameras, any, or, by what a few samples show, one of these.
        field_of_view: degrees; 0: not known.
        wrap: whether the maps repeat on the plane; None: whether most of them tile.
        overwrite: look for cameras that the file has already, too.

    Raises:
        UserError: a folder, the metadata or the old camera file is missing or malformed, there are no samples, or the
            file can't be written.
    """
    to = to or Path(input_dir) / CAMERAS_FILE
    sheet = sheet or to.with_suffix(".jpg")
    for path in (to, sheet):
        check_writable(path)
    index = index_set(input_dir, output_dir, metadata_path, curriculum=1, cameras=False)
    if not index.samples:
        raise UserError(list_faults([fault.message for fault in index.faults]))
    kept = _old_cameras(to, overwrite)
    if wrap is None:
        known = {cameras.wrap for cameras in kept.values()}
        wrap = prior == "upstream" or (known.pop() if len(known) == 1 else _tiles(index.samples))
    settings = Settings(prior, float(np.radians(field_of_view)), wrap)
    jobs = _jobs(index.samples, kept)
    work = _Work(to, settings, overwrite, workers, progress)
    outcomes, remarks = work.run(jobs)
    remarks = [*(fault.message for fault in index.faults), *remarks]
    with one_thread_each():
        remarks += mixed_up(jobs, outcomes, work.settings, workers)
    with writing(to):
        write_cameras(to, _merged(kept, outcomes, wrap))
        write_sheet(sheet, jobs, outcomes, wrap)
        work.journal.path.unlink(missing_ok=True)
    return Registration(outcomes, remarks)


class _Work:
    """The jobs of one call, and the journal of what is done."""

    def __init__(self, to: Path, settings: Settings, overwrite: bool, workers: int, progress: bool) -> None:
        self.settings, self.workers, self.progress = settings, workers, progress
        self.journal = JsonLines(
            to.with_name(f"{to.stem}.register.jsonl"), "the journal of a registration", is_line
        )
        self._call = asdict(settings) | {"overwrite": overwrite}

    def run(self, jobs: Sequence[Job]) -> tuple[list[Outcome], list[str]]:
        """Return what became of every job, and what the set turned out to be."""
        done = self._begun()
        remarks = []
        with tqdm(total=len(jobs), unit="sample", disable=not self.progress) as bar, one_thread_each():
            outcomes: dict[str, Outcome] = {}
            if self.settings.prior == "auto":
                probed = [jobs[i] for i in sorted({int(i) for i in np.linspace(0, len(jobs) - 1, _PROBED)})]
                self._work(probed, done, outcomes, bar)
                if remark := self._decide(list(outcomes.values())):
                    remarks.append(remark)
                    again = [
                        job
                        for job in probed
                        if not all(v.found or v.kept for v in outcomes[job.name].all_views)
                    ]
                    self._work(again, done, outcomes, bar=None)
            self._work([job for job in jobs if job.name not in outcomes], done, outcomes, bar)
        return [outcomes[job.name] for job in jobs], remarks

    def _decide(self, outcomes: Sequence[Outcome]) -> str:
        """Make one prior of `auto`, if the samples looked at agree; return what they show."""
        views = [view for outcome in outcomes for view in outcome.all_views if view.found and not view.kept]
        on_orbit = sum(view.on_orbit for view in views)
        if not views or _RARELY < on_orbit / len(views) < _MOSTLY:
            return ""
        prior: Prior = "upstream" if on_orbit / len(views) >= _MOSTLY else "free"
        self.settings = replace(self.settings, prior=prior)
        return f"--prior auto: {on_orbit} of the {len(views)} cameras looked at first are upstream's, so {prior} was taken"

    def _work(
        self, jobs: Sequence[Job], done: dict[str, Outcome], outcomes: dict[str, Outcome], bar: Any
    ) -> None:
        """Do the jobs that aren't done yet under the settings of now."""
        tag = self.settings.prior
        rest = []
        for job in jobs:
            before = done.get(f"{tag}:{job.name}")
            if before is not None and before.key == job.key():
                outcomes[job.name] = before
                if bar is not None:
                    bar.update()
            else:
                rest.append(job)
        # Samples of one material after each other: a process makes its features once.
        rest.sort(key=lambda job: job.material)
        for job, outcome in in_parallel(
            register_sample, rest, self.workers, begin, (self.settings,), chunk=1
        ):
            outcomes[job.name] = outcome
            self.journal.append({"prior": tag, "outcome": outcome.line()})
            if bar is not None:
                bar.update()

    def _begun(self) -> dict[str, Outcome]:
        """Return outcomes of an interrupted call with the same words, by prior and name."""
        lines = self.journal.read()
        if not lines or lines[0].get("call") != self._call or any("call" in line for line in lines[1:]):
            self.journal.path.unlink(missing_ok=True)
            self.journal.append({"call": self._call})
            return {}
        outcomes = [(line["prior"], Outcome.of_line(line["outcome"])) for line in lines[1:]]
        return {f"{prior}:{outcome.name}": outcome for prior, outcome in outcomes}


def _jobs(samples: Sequence[Sample], kept: Mapping[str, SampleCameras]) -> list[Job]:
    """Return a job for each sample; its views of both folders, and what is known of them."""
    by_name: dict[str, list[Sample]] = {}
    for sample in samples:
        by_name.setdefault(sample.name, []).append(sample)
    jobs = []
    for name, entries in by_name.items():
        views: dict[Renders, tuple[Path, ...]] = {entry.renders: entry.views for entry in entries}  # type: ignore[misc]
        old = kept.get(name)
        known = {renders: old.of(renders) for renders in views} if old else {}
        jobs.append(Job(name, entries[0].material, entries[0].maps, views, known))
    return jobs


def _merged(
    kept: Mapping[str, SampleCameras], outcomes: Sequence[Outcome], wrap: bool
) -> dict[str, SampleCameras]:
    """Return the new file's content: samples that this set hasn't stay, too."""
    merged = dict(kept)
    for outcome in outcomes:
        views: dict[Renders, Cameras] = {
            renders: tuple(view.camera for view in views)
            for renders, views in outcome.views.items()  # type: ignore[misc]
        }
        if len(views) == 2 and all(map(_equal, views["clean"], views["dirty"])):
            views["clean"] = tuple(map(_surer, views["clean"], views.pop("dirty")))
        old = kept.get(outcome.name)
        merged[outcome.name] = SampleCameras(views, old.wrap if old else wrap)
    return dict(sorted(merged.items()))


def _equal(a: Any, b: Any) -> bool:
    """Return whether two cameras are the same, one of them perhaps not known."""
    return a is None or b is None or bool(np.array_equal(a.map_to_view, b.map_to_view))


def _surer(a: Any, b: Any) -> Any:
    return max((camera for camera in (a, b) if camera is not None), key=lambda c: c.confidence, default=None)


def _old_cameras(path: Path, overwrite: bool) -> dict[str, SampleCameras]:
    if overwrite or not path.exists():
        return {}
    found = read_cameras(path)
    if found.faults:
        raise UserError(f"{list_faults(fault.message for fault in found.faults)}\nmend it, or --overwrite")
    return found.samples


def _tiles(samples: Sequence[Sample]) -> bool:
    """Return whether most of a few materials' albedo maps go on over their borders as they do inside."""
    albedos = sorted({sample.maps[0] for sample in samples})
    chosen = [albedos[i] for i in sorted({int(i) for i in np.linspace(0, len(albedos) - 1, _SEAM_MATERIALS)})]
    seamless = []
    for path in chosen:
        try:
            plane = read_picture(path, "albedo", 256).astype(np.float32).mean(0)
        except UserError:
            continue
        for across in (plane, plane.T):
            inside = np.abs(np.diff(across, axis=0)).mean()
            seamless.append(bool(np.abs(across[0] - across[-1]).mean() < _SEAM * inside + 1))
    return sum(seamless) * 2 > len(seamless)
