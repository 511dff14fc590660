"""Tiny random sample sets in the guide's layout, and a PNG writer for kinds that Pillow can't write."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from neuropbr_dist.data.builtin.cache import sample_cameras
from neuropbr_dist.data.cameras import CAMERAS_FILE, SampleCameras, write_cameras

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""PNG colour type -> values a pixel."""
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, row step, column step of each pass of an interlaced PNG."""


def write_set(
    root: Path,
    metadata: dict[str, str] | None = None,
    *,
    renders: Sequence[str] = ("clean",),
    size: int = 16,
    seed: int = 0,
) -> tuple[Path, Path]:
    """Write every sample of `metadata` to each of `renders`, and every material; returns (input, output)."""
    metadata = metadata or {"sample_0000": "wood", "sample_0001": "steel", "sample_0002": "wood"}
    rng = np.random.default_rng(seed)
    for each in renders:
        for name in metadata:
            write_views(root / "input" / each / name, size, rng)
    for material in sorted(set(metadata.values())):
        write_material(root / "output" / material, size, rng)
    (root / "input" / "render_metadata.json").write_text(json.dumps(metadata))
    return root / "input", root / "output"


def write_cameras_of(renders: Path, names: Sequence[str]) -> None:
    """Add a camera file to a set: true-looking cameras, one of a sample's three views missing, and of some two."""
    samples = {}
    for i, name in enumerate(names):
        cameras = list(sample_cameras(1, i).of("clean"))
        cameras[i % 3] = None
        if i % 4 == 1:
            cameras[(i + 1) % 3] = None
        samples[name] = SampleCameras({"clean": tuple(cameras)}, wrap=i % 2 == 0)
    write_cameras(renders / CAMERAS_FILE, samples)


def write_views(folder: Path, size: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for view in range(3):
        save(rng.integers(0, 256, (size, size, 3)), folder / f"{view}.png")


def write_material(folder: Path, size: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    save(rng.integers(0, 256, (size, size, 3)), folder / "albedo.png")
    save(rng.integers(0, 256, (size, size)), folder / "roughness.png")
    save(rng.integers(0, 256, (size, size)), folder / "metallic.png")
    save(random_normals(size, rng), folder / "normal.png")


def random_normals(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) encoded unit normals that lean at most about 25 degrees."""
    x, y = rng.uniform(-0.3, 0.3, (2, size, size))
    normals = np.stack([x, y, np.sqrt(1 - x**2 - y**2)], axis=-1)
    return np.rint((normals * 0.5 + 0.5) * 255)


def save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(np.asarray(pixels).astype(np.uint8)).save(path)


def png(
    values: np.ndarray,
    colour_type: int,
    depth: int,
    *,
    palette: np.ndarray | None = None,
    transparency: bytes | None = None,
    interlaced: bool = False,
) -> bytes:
    """A PNG of any kind, after the PNG specification.

    Args:
        values: (H, W, C) whole numbers below 2 ** depth; C is 1 to 4, by colour type.
        palette: (N, 3) uint8, with colour type 3.
        transparency: Content of a tRNS chunk.
    """
    height, width, channels = values.shape
    assert channels == CHANNELS[colour_type]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = b"".join(
        b"\0" + _pack(row, depth) for y, x, dy, dx in passes for row in values[y::dy, x::dx] if row.size
    )
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header)]
    if palette is not None:
        chunks.append((b"PLTE", palette.astype(np.uint8).tobytes()))
    if transparency is not None:
        chunks.append((b"tRNS", transparency))
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _pack(row: np.ndarray, depth: int) -> bytes:
    """A (W, C) row as bytes, most significant bit first."""
    bits = (row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
