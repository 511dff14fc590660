"""A contact sheet: the albedo, and beside it each view, rectified, framed by how sure its camera is.

Where a camera is right, a view shows what the albedo shows, at the same place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from neuropbr_dist.data.files.decode import read_picture
from neuropbr_dist.data.register.work import Job, Outcome, ViewOutcome
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import replacing
from neuropbr_dist.materials.plane import encode
from neuropbr_dist.materials.rectify import rectify

THUMB, FRAME, TITLE = 192, 4, 18
MOST_ROWS = 40
_READ = 512
_GREEN, _YELLOW, _RED = (70, 160, 70), (235, 180, 30), (200, 50, 40)
_EMPTY = 200  # gray where a view doesn't show the map's point


def write_sheet(path: Path, jobs: Sequence[Job], outcomes: Sequence[Outcome], wrap: bool) -> None:
    """Write the sheet of up to forty samples, those with doubtful views first.

    Raises:
        OSError: it can't be written.
    """
    by_name = {job.name: job for job in jobs}
    chosen = _chosen(outcomes)
    rows = [_row(by_name[outcome.name], outcome, wrap) for outcome in chosen]
    columns = max(len(row) for row in rows)
    cell = THUMB + 2 * FRAME
    sheet = Image.new("RGB", (columns * cell, len(rows) * (cell + TITLE)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for number, (row, outcome) in enumerate(zip(rows, chosen, strict=True)):
        top = number * (cell + TITLE)
        draw.text((4, top + 3), _title(outcome), fill="black", font=font)
        for column, (picture, colour) in enumerate(row):
            draw.rectangle(
                (column * cell, top + TITLE, (column + 1) * cell - 1, top + TITLE + cell - 1), fill=colour
            )
            sheet.paste(Image.fromarray(picture), (column * cell + FRAME, top + TITLE + FRAME))
    with replacing(path) as temporary:
        sheet.save(temporary, quality=88)


def _chosen(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes to show: half for samples that want a look, the rest spread over the others."""
    doubtful = [outcome for outcome in outcomes if not all(view.found for view in outcome.all_views)]
    sure = [outcome for outcome in outcomes if all(view.found for view in outcome.all_views)]
    first = doubtful[: max(MOST_ROWS // 2, MOST_ROWS - len(sure))]
    room = min(MOST_ROWS - len(first), len(sure))
    spread = [sure[i] for i in sorted({int(i) for i in np.linspace(0, len(sure) - 1, room)})] if room else []
    return [*first, *spread]


Cell = tuple[np.ndarray, tuple[int, int, int] | str]


def _row(job: Job, outcome: Outcome, wrap: bool) -> list[Cell]:
    cells: list[Cell] = [(_thumb(job.maps[0]), "white")]
    for renders, paths in job.views.items():
        for path, view in zip(paths, outcome.views[renders], strict=True):
            cells.append((_rectified(path, view, wrap), _colour(view)))
    return cells


def _rectified(path: Path, view: ViewOutcome, wrap: bool) -> np.ndarray:
    """Return the view in the map's frame, or, where nothing is known of its camera, as it is."""
    camera = view.camera
    if camera is None:
        return _thumb(path)
    try:
        picture = torch.from_numpy(read_picture(path, "view", _READ)).float()
    except UserError:
        return np.full((THUMB, THUMB, 3), _EMPTY, np.uint8)
    cameras = torch.from_numpy(encode(camera, wrap))[None, None]
    seen = rectify(picture[None, None], cameras, THUMB)[0, 0]
    shown = seen[:3] + (1 - seen[3:4]) * _EMPTY
    return shown.round().byte().permute(1, 2, 0).numpy()


def _thumb(path: Path) -> np.ndarray:
    try:
        return read_picture(path, "view", THUMB).transpose(1, 2, 0)
    except UserError:
        return np.full((THUMB, THUMB, 3), _EMPTY, np.uint8)


def _colour(view: ViewOutcome) -> tuple[int, int, int]:
    if view.map_to_view is None:
        return _RED
    return _GREEN if view.found else _YELLOW


def _title(outcome: Outcome) -> str:
    def told(views: Iterable[ViewOutcome]) -> str:
        return " ".join("-" if view.map_to_view is None else f"{view.confidence:.2f}" for view in views)

    parts: Mapping[str, str] = {renders: told(views) for renders, views in outcome.views.items()}
    return f"{outcome.name}  {outcome.material}   " + "   ".join(
        f"{renders} {text}" for renders, text in parts.items()
    )
