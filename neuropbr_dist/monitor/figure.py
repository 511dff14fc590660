"""One figure that sets a prediction beside the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from neuropbr_dist.materials.channels import MAP_SLICES
from neuropbr_dist.monitor.heat import heat
from neuropbr_dist.monitor.pictures import Look, channels_last, maps_to_images

ERROR_LIMIT = 0.3
"""Absolute error at the bright end of the heat scale. Fixed, so that figures of all epochs compare."""
ANGLE_LIMIT = 30.0
"""Angle in degrees at the bright end of the heat scale, for normals."""
SMALLEST_CELL = 192
"""Longer side in pixels of one picture inside the figure; smaller pictures are enlarged."""
VIEWS, PREDICTED, TRUE, ERROR = ROWS = ("Views", "Predicted", "Ground truth", "Error")

_MARGIN, _GUTTER, _BAR = 24, 8, 10
PAPER, _FRAME, INK, PALE_INK = (24, 25, 28), (62, 64, 70), (232, 233, 236), (158, 161, 168)


def comparison(
    look: Look, *, rows: Sequence[str] | None = None, title: str | None = None, labels: bool = True
) -> np.ndarray:
    """Return a figure of a sample: its views, predicted maps, true maps and their errors as heat.

    Args:
        rows: those of `ROWS` to draw, in that order; None: all that the look has.
        title: a line above the figure.
        labels: write names, ticks and mean errors; without them the pictures stand alone.

    Returns:
        uint8 `(height, width, 3)`. Pictures below `SMALLEST_CELL` are enlarged by a
        whole factor, pixels kept sharp.
    """
    if rows is None:
        rows = ROWS if look.target is not None else (VIEWS, PREDICTED)
    pictures = {row: _row(look, row) for row in rows}
    height, width = pictures[rows[0]][0].shape[:2]
    layout = Layout(width, height, rows=rows, title=title is not None, labels=labels)
    figure = Image.new("RGB", layout.size, PAPER)
    draw = ImageDraw.Draw(figure)
    for row in rows:
        _paste(figure, draw, layout, row, pictures[row])
    if ERROR in rows:
        _draw_bars(figure, draw, layout, labels)
    if title is not None:
        draw.text((layout.columns[0], _MARGIN), title, fill=INK, font=layout.title_font, anchor="lt")
    if labels:
        _draw_names(figure, draw, layout)
        if VIEWS in rows and look.errors:
            _draw_mean_errors(draw, layout, look.mean_errors())
    return np.array(figure)


class Layout:
    """Places of things in a figure, in pixels: four columns, the chosen rows, a bar below the errors."""

    def __init__(
        self, cell_width: int, cell_height: int, *, rows: Sequence[str] = ROWS, title: bool, labels: bool
    ):
        self.cell_width, self.cell_height = cell_width, cell_height
        text = min(max(cell_width // 18, 13), 19)
        self.font = ImageFont.load_default(text)
        self.title_font = ImageFont.load_default(round(1.4 * text))
        self.line = 2 * text if labels else 0
        left = _MARGIN + self.line
        self.columns = [left + i * (cell_width + _GUTTER) for i in range(4)]
        self.rows: dict[str, int] = {}
        self.named: list[str] = []
        """Rows with the columns' names above them."""
        y = _MARGIN + (round(2.6 * text) if title else 0)
        for i, row in enumerate(rows):
            if i == 0 or rows[i - 1] == VIEWS:
                y += self.line + (_GUTTER if i else 0)
                self.named.append(row)
            self.rows[row] = y
            y += cell_height + _GUTTER
        self.bar_top = y
        right = self.columns[-1] + cell_width + _MARGIN
        below = _BAR + self.line if ERROR in rows else -_GUTTER
        self.size = (right, self.bar_top + below + _MARGIN)

    def corner(self, row: str, column: int) -> tuple[int, int]:
        """Return the upper left pixel (x, y) of a picture."""
        return self.columns[column], self.rows[row]

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return the first and one-past-last x of columns `first` to `last`."""
        return self.columns[first], self.columns[last] + self.cell_width


def shades(errors: dict[str, Tensor]) -> Tensor:
    """Stack errors `(h, w)` a map -> `(4, h, w)` on the heat scale, where 1 is its bright end."""
    limits = {name: ANGLE_LIMIT if name == "normal" else ERROR_LIMIT for name in MAP_SLICES}
    return torch.stack([errors[name] / limit for name, limit in limits.items()])


def _row(look: Look, row: str) -> list[np.ndarray]:
    if row == VIEWS:
        pictures = [channels_last(view) for view in look.views]
    elif row == PREDICTED:
        pictures = list(maps_to_images(look.pred).values())
    elif look.target is None:
        raise ValueError(f"row {row!r} of a sample without true maps")
    elif row == TRUE:
        pictures = list(maps_to_images(look.target).values())
    else:
        pictures = list(heat(shades(look.errors).numpy()))
    return [_enlarge(picture) for picture in pictures]


def _enlarge(picture: np.ndarray) -> np.ndarray:
    longest = max(picture.shape[:2])
    times = math.ceil(SMALLEST_CELL / longest) if longest < SMALLEST_CELL else 1
    return picture.repeat(times, 0).repeat(times, 1)


def _paste(
    figure: Image.Image, draw: ImageDraw.ImageDraw, layout: Layout, row: str, pictures: list[np.ndarray]
) -> None:
    """Paste pictures of one size into their framed cells."""
    for column, picture in enumerate(pictures):
        (x, y), (height, width) = layout.corner(row, column), picture.shape[:2]
        draw.rectangle([x - 1, y - 1, x + width, y + height], outline=_FRAME)
        figure.paste(Image.fromarray(picture), (x, y))


def _draw_bars(figure: Image.Image, draw: ImageDraw.ImageDraw, layout: Layout, labels: bool) -> None:
    """Draw the heat scale below the errors: once in absolute error, once in degrees."""
    bars = [
        (layout.span(0, 2), "absolute error", "0", f"{ERROR_LIMIT:g}+"),
        (layout.span(3, 3), "angle", "0°", f"{ANGLE_LIMIT:g}°+"),
    ]
    for (left, right), name, least, most in bars:
        ramp = heat(np.linspace(0, 1, right - left))
        figure.paste(Image.fromarray(np.repeat(ramp[None], _BAR, axis=0)), (left, layout.bar_top))
        if labels:
            y = layout.bar_top + _BAR + layout.line * 3 // 4
            draw.text((left, y), least, fill=PALE_INK, font=layout.font, anchor="ls")
            draw.text(((left + right) // 2, y), name, fill=PALE_INK, font=layout.font, anchor="ms")
            draw.text((right, y), most, fill=PALE_INK, font=layout.font, anchor="rs")


def _draw_names(figure: Image.Image, draw: ImageDraw.ImageDraw, layout: Layout) -> None:
    for row in layout.named:
        names = [f"View {i + 1}" for i in range(3)] if row == VIEWS else [n.capitalize() for n in MAP_SLICES]
        for column, name in enumerate(names):
            x, y = layout.corner(row, column)
            draw.text((x, y - _GUTTER), name, fill=INK, font=layout.font, anchor="ls")
    for name in layout.rows:
        x, y = layout.corner(name, 0)
        strip = Image.new("RGB", (layout.cell_height, layout.line), PAPER)
        middle = (layout.cell_height // 2, layout.line // 2)
        ImageDraw.Draw(strip).text(middle, name, fill=PALE_INK, font=layout.font, anchor="mm")
        figure.paste(strip.rotate(90, expand=True), (x - layout.line - 2, y))


def _draw_mean_errors(draw: ImageDraw.ImageDraw, layout: Layout, means: dict[str, float]) -> None:
    """Draw the mean error of each map, in the place beside the three views."""
    x, y = layout.corner(VIEWS, 3)
    right = x + layout.cell_width
    draw.text((x, y - _GUTTER), "Mean error", fill=INK, font=layout.font, anchor="ls")
    draw.line([x, y - 1, right - 1, y - 1], fill=_FRAME)
    for i, (name, mean) in enumerate(means.items()):
        at = y + (i + 1) * layout.line
        value = f"{mean:.1f}°" if name == "normal" else f"{mean:.3f}"
        draw.text((x, at), name.capitalize(), fill=PALE_INK, font=layout.font, anchor="ls")
        draw.text((right, at), value, fill=INK, font=layout.font, anchor="rs")
