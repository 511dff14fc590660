"""Files that a prediction leaves: maps, views, and one figure of it all."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from neuropbr_dist.data.device import decode_maps
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import write_bytes
from neuropbr_dist.inference.inputs import Subject
from neuropbr_dist.materials.channels import MAP_SLICES, as_stored
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
        UserError: `folder` can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out-dir {folder}: {error.strerror}") from error
    images = maps_to_images(pred) if bits == 8 else maps_to_16_bit(pred)
    for name, image in images.items():
        (save_png if bits == 8 else save_png_16)(folder / f"{name}.png", image)
    for i, view in enumerate(seen):
        save_png(folder / f"view_{i}.png", view.permute(1, 2, 0).numpy())
    target = None if subject.maps is None else decode_maps(subject.maps[None])[0]
    save_png(folder / "picture.png", comparison(take_look(subject.title, seen, pred, target), title=title))
    return [*(f"{name}.png" for name in images), *(f"view_{i}.png" for i in range(3)), "picture.png"]


def maps_to_16_bit(maps: Tensor) -> dict[str, np.ndarray]:
    """As `monitor.maps_to_images`, with values 0..65535 in uint16."""
    stored = as_stored(maps.detach().float().cpu()).clamp(0, 1)
    levels = np.rint(stored.double().numpy() * 65535).astype(np.uint16)
    return {
        name: levels[part].transpose(1, 2, 0) if name in ("albedo", "normal") else levels[part][0]
        for name, part in MAP_SLICES.items()
    }


def save_png_16(path: Path, image: np.ndarray) -> None:
    """Write uint16 HWC (RGB) or HW (gray) as PNG; a reader sees the whole file or none.

    By hand, after the PNG specification: Pillow has no 16-bit RGB. Each row is stored as its
    difference to the one above (filter type 2), which compresses smooth maps well.
    """
    height, width = image.shape[:2]
    rows = np.ascontiguousarray(image, ">u2").reshape(height, -1).view(np.uint8)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), rows - above])
    colour_type = 2 if image.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 4)), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    write_bytes(path, b"\x89PNG\r\n\x1a\n" + content)
