"""Held-out samples as files: what the run page (`launch/report.py`) is made from.

    looks/clean/sample_0004/view_0.png, view_1.png, view_2.png
    looks/clean/sample_0004/true/albedo.png, roughness.png, metallic.png, normal.png
    looks/clean/sample_0004/step_00000120/albedo.png, …     as predicted after 120 steps

At most `LARGEST_SIDE` px a side; names and coding are those of the data set's own files.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from torch import Tensor

from neuropbr_dist.files import replacing_folder
from neuropbr_dist.monitor.pictures import Look, channels_last, maps_to_images, save_png

FOLDER = "looks"
TRUE = "true"
_STEP = re.compile(r"step_(\d{8,})")


def write_look(run: Path, step: int, look: Look) -> None:
    """Keep the predicted maps of a step in a run's folder; views and true maps once."""
    folder = run / FOLDER / look.key
    if not (folder / TRUE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        for i, view in enumerate(look.views):
            save_png(folder / f"view_{i}.png", channels_last(view))
        if look.target is not None:
            _save_maps(folder / TRUE, look.target)
    _save_maps(folder / f"step_{step:08d}", look.pred)


def cut_back_looks(run: Path, step: int) -> None:
    """Delete what was predicted after `step`."""
    for key in look_keys(run):
        for found, folder in look_steps(run, key).items():
            if found > step:
                shutil.rmtree(folder)


def look_keys(run: Path) -> list[str]:
    """Return the names of the samples that a run's folder holds looks of, sorted."""
    root = run / FOLDER
    return sorted(path.parent.relative_to(root).as_posix() for path in root.rglob("view_0.png"))


def look_steps(run: Path, key: str) -> dict[int, Path]:
    """Return step -> folder of the maps predicted then, in order."""
    steps = ((_STEP.fullmatch(path.name), path) for path in (run / FOLDER / key).iterdir())
    return dict(sorted((int(found[1]), path) for found, path in steps if found))


def _save_maps(folder: Path, maps: Tensor) -> None:
    """Save maps in a folder that appears whole; one of that name, which a run that was taken back has left, goes."""
    shutil.rmtree(folder, ignore_errors=True)
    with replacing_folder(folder) as part:
        for name, image in maps_to_images(maps).items():
            save_png(part / f"{name}.png", image)
