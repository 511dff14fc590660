"""A quick look at every PNG file before training: its first 33 bytes and its last 12.

It finds what would otherwise stop a run hours later: wrong sizes, wrong kinds, cut
files. Damage inside a file is found by `verify`, or when the file is decoded.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from neuropbr_dist.data.files.decode import GRAY_ALPHA_16, GRAY_NORMAL, Role
from neuropbr_dist.data.files.entries import Sample
from neuropbr_dist.data.files.png import IEND, NOT_WHOLE, SIGNATURE
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import read_json, require_file, write_json, writing
from neuropbr_dist.materials.channels import MAP_NAMES

log = logging.getLogger(__name__)

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
BIT_DEPTHS = {GRAY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GRAY_ALPHA: (8, 16), RGBA: (8, 16)}
"""PNG colour type -> bit depths (PNG specification, table 11.1)."""

THREADS = 8
"""Files looked at in parallel: on network storage opening one is all waiting."""


class Header(NamedTuple):
    """The fields of a PNG's IHDR chunk that matter here."""

    width: int
    height: int
    depth: int
    """Bits a channel."""
    colour: int
    """PNG colour type."""


class HeaderCheck(NamedTuple):
    """Faults of one rank's share, and the side in pixels of the set's first picture (None: unreadable)."""

    faults: list[str]
    native_size: int | None


def roles_of(samples: Iterable[Sample]) -> dict[Path, Role]:
    """Return every picture of `samples` with its role; the first is the first sample's first view."""
    roles: dict[Path, Role] = {}
    for sample in samples:
        roles.update((path, "view") for path in sample.views)
        roles.update(zip(sample.maps, MAP_NAMES, strict=True))
    return roles


def check_headers(
    roles: Mapping[Path, Role],
    image_size: int | None,
    *,
    rank: int = 0,
    world_size: int = 1,
    cache: Path | None = None,
) -> HeaderCheck:
    """Check this rank's share of a set's pictures.

    Every picture must be a whole square PNG of a kind that its role allows, and, unless
    `image_size` is given, of the same size as the first, to which all ranks compare.

    Args:
        image_size: Side in pixels that pictures will be resized to. None: their own.
        cache: JSON file in which headers are kept by path, size and modification time,
            so that a restart only asks for those. A rank needs a file of its own.
    """
    share = sorted(roles)[rank::world_size]
    known = _load_cache(cache)

    reference = next(iter(roles))
    first = _inspect(reference, known)
    native_size = first["header"][0] if "header" in first else None
    with ThreadPoolExecutor(THREADS) as pool:
        results = dict(zip(share, pool.map(lambda path: _inspect(path, known), share), strict=True))

    faults = []
    for path, result in results.items():
        if "fault" in result:
            faults.append(result["fault"])
            continue
        fault = _rule(Header(*result["header"]), roles[path])
        if fault is None and image_size is None and native_size and result["header"][0] != native_size:
            width, height = result["header"][:2]
            fault = (
                f"{width} x {height}, but {reference} is {native_size} wide;"
                " set data.image_size to resize all pictures to one size"
            )
        if fault:
            faults.append(f"{path}: {fault}")
    _save_cache(cache, results)
    return HeaderCheck(faults, native_size)


def read_header(path: Path) -> Header:
    """Return size and kind of a PNG file, from its first 33 bytes; its last 12 must be the IEND chunk.

    Raises:
        UserError: The file is missing, not a PNG, or damaged in those bytes.
    """
    require_file(path)
    try:
        with open(path, "rb") as file:
            head = file.read(33)
            tail = b"" if len(head) < 33 else _last_bytes(file, len(IEND))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if not head.startswith(SIGNATURE):
        raise UserError(f"{path}: {'not a PNG file' if head else 'empty'}")
    if tail != IEND:
        raise UserError(f"{path}: {NOT_WHOLE}")
    length, kind, width, height, depth, colour = struct.unpack(">I4sIIBB", head[8:26])
    (checksum,) = struct.unpack(">I", head[29:33])
    if (length, kind) != (13, b"IHDR") or zlib.crc32(head[12:29]) != checksum:
        raise UserError(f"{path}: damaged (its header can't be read)")
    return Header(width, height, depth, colour)


def _last_bytes(file: BinaryIO, count: int) -> bytes:
    file.seek(-count, os.SEEK_END)
    return file.read(count)


def _rule(header: Header, role: Role) -> str | None:
    """Return why a picture can't be used as `role`, or None."""
    width, height, depth, colour = header
    if depth not in BIT_DEPTHS.get(colour, ()):
        return f"damaged (colour type {colour} with {depth} bits does not exist)"
    if width != height:
        return f"{width} x {height}; pictures must be square"
    if role == "normal" and colour in (GRAY, GRAY_ALPHA):
        return GRAY_NORMAL
    if colour == GRAY_ALPHA and depth == 16:
        return GRAY_ALPHA_16
    return None


def _inspect(path: Path, known: dict[str, dict]) -> dict:
    """Return {"size", "mtime_ns", "header"} of a good file, {"fault"} of a bad one."""
    try:
        status = path.stat()
        result = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        before = known.get(str(path), {})
        if all(before.get(key) == value for key, value in result.items()):
            return before
        return result | {"header": read_header(path)}
    except OSError as error:
        return {"fault": f"{path}: {error.strerror}"}
    except UserError as error:
        return {"fault": str(error)}


def _load_cache(cache: Path | None) -> dict[str, dict]:
    """Return what is known; nothing of a file that a crash has damaged, which is written anew."""
    if cache is None or not cache.exists():
        return {}
    try:
        content = read_json(cache)
    except UserError:
        content = None
    if not isinstance(content, dict) or not all(map(_is_known, content.values())):
        log.warning("%s: not a cache of picture headers; all are read again", cache)
        return {}
    return content


def _is_known(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"size", "mtime_ns", "header"}:
        return False
    header = entry["header"]
    return (
        isinstance(header, list)
        and len(header) == 4
        and all(type(n) is int and 0 <= n < 1 << 32 for n in header)
    )


def _save_cache(cache: Path | None, results: dict[Path, dict]) -> None:
    if cache is None:
        return
    good = {str(path): result for path, result in results.items() if "header" in result}
    with writing(cache):
        write_json(cache, good, durable=True)
