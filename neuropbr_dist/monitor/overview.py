"""The figure of a prediction whose true maps aren't known."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from neuropbr_dist.monitor.pictures import (
    _INK,
    _MARGIN,
    _PAPER,
    Layout,
    _channels_last,
    _draw_names,
    _fit,
    _paste,
    maps_to_images,
)


def overview(views: Tensor, pred: Tensor, *, title: str) -> np.ndarray:
    """The first two rows of a `comparison`: views and predicted maps.

    Args:
        views: `(3, 3, H, W)` uint8.
        pred: `(8, H, W)` float; normals in [-1, 1].
        title: a line above the figure.

    Returns:
        uint8 `(height, width, 3)`, pictures scaled as in `comparison`.
    """
    shown = _fit(views.cpu().float()).round().clamp(0, 255).to(torch.uint8)
    maps = maps_to_images(_fit(pred.detach().float().cpu()))
    rows = [[_channels_last(view) for view in shown], list(maps.values())]
    height, width = shown.shape[-2:]
    layout = Layout(width, height, title=True, labels=True)
    figure = Image.new("RGB", (layout.size[0], layout.rows[1] + height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(figure)
    _paste(figure, draw, layout, rows)
    _draw_names(figure, draw, layout)  # names of further rows fall below the figure
    draw.text((layout.columns[0], _MARGIN), title, fill=_INK, font=layout.title_font, anchor="lt")
    return np.array(figure)
