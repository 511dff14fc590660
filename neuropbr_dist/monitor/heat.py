"""The colour of an error: a heat scale whose lightness rises evenly with the value.

Built in OKLCh (B. Ottosson 2020): lightness is linear in the value, so that equal
steps of error look equal, also in grey print and to colour-blind eyes; the hue runs
from indigo over magenta and orange to pale yellow.
"""

from __future__ import annotations

import numpy as np

from neuropbr_dist.materials.channels import linear_to_srgb

_DARKEST, _BRIGHTEST = 0.16, 0.95
_FIRST_HUE, _LAST_HUE = 280, 465  # degrees; 465 is 105 after a full turn
_GREYEST, _COLOUR = 0.06, 0.13

# OKLab to cone responses (cubed after it), and those to linear sRGB.
_TO_CONES = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_TO_SRGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def heat(values: np.ndarray) -> np.ndarray:
    """Colour values `(...)`, clipped to [0, 1] -> sRGB uint8 `(..., 3)`; 0 is nearly black, 1 pale yellow."""
    values = np.clip(np.asarray(values, dtype=np.float64), 0, 1)
    lightness = _DARKEST + (_BRIGHTEST - _DARKEST) * values
    chroma = _GREYEST + _COLOUR * np.sin(np.pi * values)
    hue = np.deg2rad(_FIRST_HUE + (_LAST_HUE - _FIRST_HUE) * values)
    oklab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    linear = np.clip((oklab @ _TO_CONES.T) ** 3 @ _TO_SRGB.T, 0, 1)
    return np.round(255 * linear_to_srgb(linear)).astype(np.uint8)
