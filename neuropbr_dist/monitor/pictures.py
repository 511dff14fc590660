"""Pictures for a person: map files, and one figure that sets a prediction beside the truth."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from neuropbr_dist.monitor.heat import heat
from neuropbr_dist.objectives.maps import MAP_SLICES, NORMAL
from neuropbr_dist.objectives.normals import normal_angle

ERROR_LIMIT = 0.3
"""Absolute error at the bright end of the heat scale. Fixed, so that figures of all epochs compare."""
ANGLE_LIMIT = 30.0
"""Angle in degrees at the bright end of the heat scale, for normals."""
SMALLEST_CELL, LARGEST_CELL = 192, 384
"""Longer side in pixels of one picture inside the figure."""

_MARGIN, _GUTTER, _BAR = 24, 8, 10
_PAPER, _FRAME, _INK, _PALE_INK = (24, 25, 28), (62, 64, 70), (232, 233, 236), (158, 161, 168)
_ROWS = ("Views", "Predicted", "Ground truth", "Error")


def maps_to_images(maps: Tensor) -> dict[str, np.ndarray]:
    """Maps `(8, H, W)` -> name to uint8: albedo and normal HWC, roughness and metallic HW.

    Values are clipped to [0, 1]; normals are stored as (n + 1) / 2.
    """
    pictures = maps.detach().float().cpu().clone()
    pictures[NORMAL] = (pictures[NORMAL] + 1) / 2
    levels = (pictures.clamp(0, 1) * 255).round().to(torch.uint8)
    return {name: _channels_last(levels[part]) for name, part in MAP_SLICES.items()}


def save_png(path: Path | str, image: np.ndarray) -> None:
    """Write uint8 HWC or HW as PNG; a reader sees the whole file or none."""
    path = Path(path)
    part = path.with_name(path.name + ".tmp")
    Image.fromarray(image).save(part, format="PNG")
    os.replace(part, path)


def error_maps(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Maps `(8, H, W)` -> name to error `(H, W)`: mean absolute error over channels, for normals degrees."""
    errors = {name: (pred[part] - target[part]).abs().mean(0) for name, part in MAP_SLICES.items()}
    return errors | {"normal": normal_angle(pred[None, NORMAL], target[None, NORMAL])[0]}


def comparison(
    views: Tensor, pred: Tensor, target: Tensor, *, title: str | None = None, labels: bool = True
) -> np.ndarray:
    """One figure of a sample: its views, predicted maps, true maps and their errors as heat.

    Args:
        views: `(3, 3, H, W)` uint8.
        pred, target: `(8, H, W)` float; normals in [-1, 1].
        title: a line above the figure.
        labels: write names, ticks and mean errors; without them the pictures stand alone.

    Returns:
        uint8 `(height, width, 3)`. Pictures above `LARGEST_CELL` are scaled down,
        those below `SMALLEST_CELL` enlarged by a whole factor, pixels kept sharp.
    """
    pred, target = pred.detach().float().cpu(), target.detach().float().cpu()
    errors = error_maps(pred, target)
    limits = {name: ANGLE_LIMIT if name == "normal" else ERROR_LIMIT for name in MAP_SLICES}
    shades = torch.stack([errors[name] / limit for name, limit in limits.items()])
    rows = [
        [_channels_last(view) for view in _fit(views.cpu().float()).round().clamp(0, 255).to(torch.uint8)],
        list(maps_to_images(_fit(pred)).values()),
        list(maps_to_images(_fit(target)).values()),
        list(heat(_fit(shades).numpy())),
    ]
    height, width = rows[-1][0].shape[:2]
    layout = Layout(width, height, title=title is not None, labels=labels)
    figure = Image.new("RGB", layout.size, _PAPER)
    draw = ImageDraw.Draw(figure)
    _paste(figure, draw, layout, rows)
    _draw_bars(figure, draw, layout, labels)
    if title is not None:
        draw.text((layout.columns[0], _MARGIN), title, fill=_INK, font=layout.title_font, anchor="lt")
    if labels:
        _draw_names(figure, draw, layout)
        _draw_mean_errors(draw, layout, {name: error.mean().item() for name, error in errors.items()})
    return np.array(figure)


class Layout:
    """Where things stand in a comparison figure, in pixels: four columns, four rows, a bar below."""

    def __init__(self, cell_width: int, cell_height: int, *, title: bool, labels: bool):
        self.cell_width, self.cell_height = cell_width, cell_height
        text = min(max(cell_width // 18, 13), 19)
        self.font = ImageFont.load_default(text)
        self.title_font = ImageFont.load_default(round(1.4 * text))
        self.line = 2 * text if labels else 0
        left = _MARGIN + self.line
        self.columns = [left + i * (cell_width + _GUTTER) for i in range(4)]
        views = _MARGIN + (round(2.6 * text) if title else 0) + self.line
        predicted = views + cell_height + 2 * _GUTTER + self.line
        self.rows = [views, *(predicted + i * (cell_height + _GUTTER) for i in range(3))]
        self.bar_top = self.rows[-1] + cell_height + _GUTTER
        right = self.columns[-1] + cell_width + _MARGIN
        self.size = (right, self.bar_top + _BAR + self.line + _MARGIN)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Upper left pixel (x, y) of a picture."""
        return self.columns[column], self.rows[row]

    def span(self, first: int, last: int) -> tuple[int, int]:
        """First and one-past-last x of columns `first` to `last`."""
        return self.columns[first], self.columns[last] + self.cell_width


def _fit(pictures: Tensor) -> Tensor:
    """Pictures `(..., H, W)` scaled to the size of a cell."""
    height, width = pictures.shape[-2:]
    longest = max(height, width)
    stack = pictures.reshape(1, -1, height, width)
    if longest > LARGEST_CELL:
        size = [max(1, round(side * LARGEST_CELL / longest)) for side in (height, width)]
        stack = F.interpolate(stack, size=size, mode="bilinear", antialias=True)
    elif longest < SMALLEST_CELL:
        stack = F.interpolate(stack, scale_factor=math.ceil(SMALLEST_CELL / longest), mode="nearest")
    return stack.reshape(*pictures.shape[:-2], *stack.shape[-2:])


def _channels_last(picture: Tensor) -> np.ndarray:
    """`(3, H, W)` -> HWC, `(1, H, W)` -> HW."""
    return np.ascontiguousarray(picture.permute(1, 2, 0).numpy() if len(picture) > 1 else picture[0].numpy())


def _paste(
    figure: Image.Image, draw: ImageDraw.ImageDraw, layout: Layout, rows: list[list[np.ndarray]]
) -> None:
    """Rows of pictures of one size into their framed cells."""
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            (x, y), (height, width) = layout.corner(row, column), picture.shape[:2]
            draw.rectangle([x - 1, y - 1, x + width, y + height], outline=_FRAME)
            figure.paste(Image.fromarray(picture), (x, y))


def _draw_bars(figure: Image.Image, draw: ImageDraw.ImageDraw, layout: Layout, labels: bool) -> None:
    """The heat scale below the errors: once in absolute error, once in degrees."""
    bars = [
        (layout.span(0, 2), "absolute error", "0", f"{ERROR_LIMIT:g}+"),
        (layout.span(3, 3), "angle", "0°", f"{ANGLE_LIMIT:g}°+"),
    ]
    for (left, right), name, least, most in bars:
        ramp = heat(np.linspace(0, 1, right - left))
        figure.paste(Image.fromarray(np.repeat(ramp[None], _BAR, axis=0)), (left, layout.bar_top))
        if labels:
            y = layout.bar_top + _BAR + layout.line * 3 // 4
            draw.text((left, y), least, fill=_PALE_INK, font=layout.font, anchor="ls")
            draw.text(((left + right) // 2, y), name, fill=_PALE_INK, font=layout.font, anchor="ms")
            draw.text((right, y), most, fill=_PALE_INK, font=layout.font, anchor="rs")


def _draw_names(figure: Image.Image, draw: ImageDraw.ImageDraw, layout: Layout) -> None:
    views = [f"View {i + 1}" for i in range(3)]
    for row, names in {0: views, 1: [name.capitalize() for name in MAP_SLICES]}.items():
        for column, name in enumerate(names):
            x, y = layout.corner(row, column)
            draw.text((x, y - _GUTTER), name, fill=_INK, font=layout.font, anchor="ls")
    for row, name in enumerate(_ROWS):
        x, y = layout.corner(row, 0)
        strip = Image.new("RGB", (layout.cell_height, layout.line), _PAPER)
        middle = (layout.cell_height // 2, layout.line // 2)
        ImageDraw.Draw(strip).text(middle, name, fill=_PALE_INK, font=layout.font, anchor="mm")
        figure.paste(strip.rotate(90, expand=True), (x - layout.line - 2, y))


def _draw_mean_errors(draw: ImageDraw.ImageDraw, layout: Layout, means: dict[str, float]) -> None:
    """The place beside the three views: the mean error of each map."""
    x, y = layout.corner(0, 3)
    right = x + layout.cell_width
    draw.text((x, y - _GUTTER), "Mean error", fill=_INK, font=layout.font, anchor="ls")
    draw.line([x, y - 1, right - 1, y - 1], fill=_FRAME)
    for i, (name, mean) in enumerate(means.items()):
        at = y + (i + 1) * layout.line
        value = f"{mean:.1f}°" if name == "normal" else f"{mean:.3f}"
        draw.text((x, at), name.capitalize(), fill=_PALE_INK, font=layout.font, anchor="ls")
        draw.text((right, at), value, fill=_INK, font=layout.font, anchor="rs")
