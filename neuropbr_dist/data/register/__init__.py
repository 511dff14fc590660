"""Cameras for sets that have none: each view is laid on its material's own maps.

`view.register_view` finds one camera; `run.register` those of a set. OpenCV, which does the features and the
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
            "register needs OpenCV: pip install opencv-python-headless, or neuropbr_dist[register]"
        )
