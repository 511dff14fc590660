"""Cameras for sets that have none: each view is laid on its material's own maps.

`search.Search` finds one camera, `run.register` those of a set; `check.misplaced` lays views on maps by known ones. OpenCV, which does the features and the
resampling, is an extra: `require_opencv` says so in one line where it is missing.
"""

from __future__ import annotations

import importlib.util

from neuropbr_dist.errors import UserError


def has_opencv() -> bool:
    """Return whether OpenCV is installed."""
    return importlib.util.find_spec("cv2") is not None


def require_opencv() -> None:
    """Raise UserError if OpenCV isn't installed."""
    if not has_opencv():
        raise UserError(
            "cameras are found with OpenCV, which isn't installed: pip install 'neuropbr_dist[register]'"
        )
