"""Files that a prediction leaves: maps, views, and one figure of it all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from neuropbr_dist.data.files.png import encoded
from neuropbr_dist.files import write_bytes, writing
from neuropbr_dist.inference.subject import Subject
from neuropbr_dist.materials.channels import MAP_SLICES, as_stored
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.monitor import comparison, maps_to_images, save_png, take_look


def write_pictures(
    folder: Path, subject: Subject, seen: Tensor, pred: Tensor, *, bits: int, title: str
) -> list[str]:
    """Write `albedo.png`, `roughness.png`, `metallic.png`, `normal.png`, `view_0..2.png`, `picture.png`.

    Roughness and metallic have one channel; normals are stored as (n + 1) / 2. Views are as the
    model saw them, resized and perhaps rectified but not normalised.

    Args:
        seen: (3, 3, S, S) uint8, see `InferenceGenerator.seen`.
        pred: (8, S, S) float.
        bits: 8 or 16 a channel of the maps.
        title: above the figure.

    Returns:
        The files' names.

    Raises:
        UserError: `folder` can't be made, or a file in it can't be written.
    """
    images = maps_to_images(pred) if bits == 8 else maps_to_16_bit(pred)
    target = None if subject.maps is None else decode_maps(subject.maps[None])[0]
    figure = comparison(take_look(subject.title, seen, pred, target), title=title)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            write_bytes(folder / f"{name}.png", encoded(image))
        for i, view in enumerate(seen):
            save_png(folder / f"view_{i}.png", view.permute(1, 2, 0).numpy())
        save_png(folder / "picture.png", figure)
    return [*(f"{name}.png" for name in images), *(f"view_{i}.png" for i in range(3)), "picture.png"]


def maps_to_16_bit(maps: Tensor) -> dict[str, np.ndarray]:
    """Return what `monitor.maps_to_images` does, with values 0..65535 in uint16."""
    stored = as_stored(maps.detach().float().cpu()).clamp(0, 1)
    levels = np.rint(stored.double().numpy() * 65535).astype(np.uint16)
    return {
        name: levels[part].transpose(1, 2, 0) if name in ("albedo", "normal") else levels[part][0]
        for name, part in MAP_SLICES.items()
    }
