"""Held-out samples as the page embeds them: eight channels of maps in one grey picture."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neuropbr_dist.errors import UserError
from neuropbr_dist.files import read_bytes
from neuropbr_dist.materials.channels import MAP_SLICES
from neuropbr_dist.monitor.look_files import FOLDER, TRUE, look_keys, look_steps
from neuropbr_dist.report.folder import RunFolder

log = logging.getLogger(__name__)

MOST_STEPS = 24
"""Most steps of one sample on the page."""
QUALITY = 85
"""Quality of WebP, which is lossy. Grey, so that no channel is mixed with another or halved in size."""
TILES = 4
"""Channels a row: R, G, B of the albedo and roughness; metallic and X, Y, Z of the normal."""


def samples(run: RunFolder) -> list[dict[str, Any]]:
    """Return for each sample its name, size, pictures as data URLs and the steps it was predicted at.

    Of many steps the first, the best and the last are kept, and others evenly between them.
    """
    values = {line["step"]: line for line in run.metrics if "val/loss" in line}
    losses = {step: line["val/loss"] for step, line in values.items() if line["val/loss"] is not None}
    best = min(losses, key=lambda step: losses[step]) if losses else None
    found = []
    for key in look_keys(run.path):
        try:
            found.append(sample(run.path, key, values, best))
        except UserError as error:  # a run that was killed amid it leaves a half
            log.warning("look %s left out: %s", key, error)
    return found


def sample(run: Path, key: str, values: dict[int, dict[str, Any]], best: int | None) -> dict[str, Any]:
    """
    Args:
        values: validation metrics by step.
        best: step of the lowest validation loss.
    """
    folder = run / FOLDER / key
    # A run that is going may be writing one: only whole ones, which have metrics, are shown.
    steps = {step: path for step, path in look_steps(run, key).items() if step in values}
    chosen = choose(sorted(steps), best)
    looks = [
        {"step": step, "epoch": values[step]["epoch"], "best": step == best, "maps": atlas(steps[step])}
        for step in chosen
    ]
    pictures = [open_picture(folder / f"view_{i}.png", "RGB") for i in range(3)]
    width, height = pictures[0].size
    views = [webp(picture) for picture in pictures]
    true = atlas(folder / TRUE) if (folder / TRUE).exists() else None
    return {"key": key, "width": width, "height": height, "views": views, "true": true, "looks": looks}


def choose(steps: Sequence[int], best: int | None, most: int = MOST_STEPS) -> list[int]:
    """Return at most `most` of the steps: first, last, `best` if it is one, and others evenly."""
    if len(steps) <= most:
        return list(steps)
    even = {steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)}
    if best is not None and best in steps and best not in even:
        even.remove(min(even - {steps[0], steps[-1]}, key=lambda step: abs(step - best)))
        even.add(best)
    return sorted(even)


def atlas(folder: Path) -> str:
    """Return the four maps of a folder as one grey picture of 4 x 2 tiles, a channel each: a data URL."""
    channels = []
    for name in MAP_SLICES:
        picture = np.asarray(
            open_picture(folder / f"{name}.png", "RGB" if name in ("albedo", "normal") else "L")
        )
        channels += list(picture.transpose(2, 0, 1)) if picture.ndim == 3 else [picture]
    if len({channel.shape for channel in channels}) > 1:
        raise UserError(f"{folder}: its maps differ in size")
    rows = [np.hstack(channels[i : i + TILES]) for i in range(0, len(channels), TILES)]
    return webp(Image.fromarray(np.vstack(rows)))


def open_picture(path: Path, mode: str) -> Image.Image:
    """Read whole and converted to `mode` (Pillow's). Raises UserError for what is no picture."""
    try:
        with Image.open(io.BytesIO(read_bytes(path)), formats=["PNG"]) as picture:
            return picture.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: {error}") from error


def webp(picture: Image.Image) -> str:
    """Return the picture as a data URL of WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
