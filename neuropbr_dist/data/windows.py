"""Parts of stored pictures that the device needs to show some rows of a sample, however it turns and rectifies it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from neuropbr_dist.data.sources import Entry, Source
from neuropbr_dist.materials.footprint import Window, rows_seen


def window_of(rows: tuple[int, int], side: int, orientation: int) -> Window:
    """Return the part of a stored picture that shows up as `rows` once it is in an orientation; see `augment`.

    It has all columns, or of a picture turned by a quarter all rows.
    """
    quarters, mirrored = orientation % 4, orientation >= 4
    from_end = (side - rows[1], side - rows[0])
    if quarters % 2 == 0:
        return Window(from_end if quarters else rows, (0, side))
    return Window((0, side), from_end if (quarters == 1) != mirrored else rows)


def windows_seen(cameras: np.ndarray, window: Window, side: int) -> list[Window]:
    """Return the rows of each view, seen by `cameras` (3, 14), that a part of the maps is rectified from."""
    return [Window(rows_seen(camera, window, side), (0, side)) for camera in cameras]


def load_windows(
    source: Source,
    entries: Sequence[Entry],
    of_views: Sequence[Sequence[Window]],
    of_maps: Sequence[Window],
    views: np.ndarray,
    maps: np.ndarray,
) -> None:
    """Load parts of samples, one after another, into flat memory of just their size.

    Args:
        of_views, of_maps: the part of each view, three a sample, and of its maps.
        views, maps: uint8 (n,).

    Raises:
        UserError: a file can't be read, or holds what it may not.
    """
    view_pieces = pieces(views, 3, [window for each in of_views for window in each])
    map_pieces = pieces(maps, 8, of_maps)
    for entry, seen, window in zip(entries, of_views, of_maps, strict=True):
        windows = [*seen, window]
        outs = [*(next(view_pieces) for _ in seen), next(map_pieces)]
        # Sources read rows; of a part with some columns all of each row.
        read = [
            out if out.shape[-1] == source.size else np.empty((*out.shape[:2], source.size), np.uint8)
            for out in outs
        ]
        source.load_into(entry, read[:3], read[3], [each.rows[0] for each in windows])
        for out, rows, each in zip(outs, read, windows, strict=True):
            if out is not rows:
                np.copyto(out, rows[:, :, slice(*each.columns)])


def pieces(memory: np.ndarray, channels: int, windows: Sequence[Window]) -> Iterator[np.ndarray]:
    """Yield the memory of each window's picture, (channels, h, w), one after another."""
    end = 0
    for window in windows:
        begin, end = end, end + channels * window.area
        yield memory[begin:end].reshape(channels, *window.shape)
