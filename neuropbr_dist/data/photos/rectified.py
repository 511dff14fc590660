"""Photos as the square views that a network takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from neuropbr_dist.data.photos.aligned import Aligned
from neuropbr_dist.data.photos.read import Photo
from neuropbr_dist.materials.plane import CONFIDENCE, ENCODED, EYE, MATRIX, encode
from neuropbr_dist.materials.rectify import rectify

VIEWS = 3
_STRAIGHT_ON = np.array([1, 0, 0.5, 0, -1, 0.5, 0, 0, 1], np.float32)


def rectified(aligned: Aligned, side: int) -> tuple[Tensor, Tensor]:
    """Resample photos into their frame.

    Args:
        side: of the frame, in pixels.

    Returns:
        Views uint8 (3, 3, side, side), black where there is no photo, and their cameras (3, 14): each sees the frame
        straight on, pixel by pixel, from the photo's own eye.
    """
    views, cameras = torch.zeros(VIEWS, 3, side, side, dtype=torch.uint8), torch.zeros(VIEWS, ENCODED)
    for number, (photo, camera) in enumerate(zip(aligned.photos, aligned.cameras, strict=True)):
        if camera is None:
            continue
        encoded = torch.from_numpy(encode(camera, wrap=False))
        picture = torch.from_numpy(photo.pixels)[None, None].float()
        seen = rectify(picture, encoded[None, None], side)[0, 0, :3]
        views[number] = seen.round().clamp(0, 255).byte()
        cameras[number, MATRIX] = torch.from_numpy(_STRAIGHT_ON)
        cameras[number, EYE], cameras[number, CONFIDENCE] = encoded[EYE], encoded[CONFIDENCE]
    return views, cameras


def stretched(photos: Sequence[Photo], side: int) -> Tensor:
    """Return photos, whatever their shapes, resized to squares: uint8 (3, 3, side, side), black where there is none."""
    views = torch.zeros(VIEWS, 3, side, side, dtype=torch.uint8)
    for number, photo in enumerate(photos):
        image = Image.fromarray(photo.pixels.transpose(1, 2, 0)).resize(
            (side, side), Image.Resampling.BILINEAR
        )
        views[number] = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    return views
