"""Maps of materials used last, which several samples share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neuropbr_dist.data.files.decode import read_material


class MapFiles:
    """A material's four files -> its maps, decoded once as long as there is room.

    Args:
        size: side in pixels to resize to; None: the files' own.
        cache_mib: memory for those used last.
    """

    def __init__(self, size: int | None, cache_mib: int = 0) -> None:
        self._size, self._room = size, cache_mib << 20
        self._kept: OrderedDict[Sequence[Path], np.ndarray] = OrderedDict()

    def read(self, paths: Sequence[Path]) -> np.ndarray:
        """Return maps, uint8 (8, S, S), read-only: they may be kept.

        Raises:
            UserError: see `decode.read_material`.
        """
        maps = self._kept.pop(paths, None)
        if maps is None:
            maps = read_material(paths, self._size)
            maps.flags.writeable = False
            self._room -= maps.nbytes
        self._kept[paths] = maps
        while self._room < 0 and self._kept:
            self._room += self._kept.popitem(last=False)[1].nbytes
        return maps
