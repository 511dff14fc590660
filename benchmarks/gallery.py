"""The README's picture: views, predicted maps, true maps and both materials under one lamp.

    launch/benchmark.py gallery CHECKPOINT docs/maps.webp --samples NAME NAME ...

Two rows a material, predicted above true. For held-out built-in materials: pictures of other sets carry their licences.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser
from neuropbr_dist.files import replacing
from neuropbr_dist.inference import load_generator, predict
from neuropbr_dist.inference.generator import InferenceGenerator
from neuropbr_dist.inference.samples import OpenedSet, SetSamples
from neuropbr_dist.inference.subject import Subject
from neuropbr_dist.materials.bench import orbit, relit
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.monitor.figure import INK, PALE_INK, PAPER
from neuropbr_dist.monitor.pictures import channels_last, maps_to_bytes, maps_to_images

COLUMNS = ("View 1", "View 2", "View 3", "Albedo", "Roughness", "Metallic", "Normal", "Relit")
CELL, GAP, MARGIN, LINE = 144, 4, 12, 22
TURN = 0.15
"""Of the lamp that both materials are shown under."""


def maps_and_relit(maps: Tensor) -> list[np.ndarray]:
    """Return five pictures of maps (8, S, S) float: uint8 (S, S, 3)."""
    return [*maps_to_images(maps).values(), relit(maps_to_bytes(maps).numpy(), orbit(TURN))]


def rows_of(model: InferenceGenerator, subject: Subject) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return eight pictures of what the model sees and predicts, and five of the truth."""
    pred = predict(model, subject.views, subject.cameras)
    assert subject.maps is not None  # samples of a set have theirs
    seen = [channels_last(view) for view in model.seen(subject.views, subject.cameras)]
    return [*seen, *maps_and_relit(pred)], maps_and_relit(decode_maps(subject.maps[None])[0])


def gallery(model: InferenceGenerator, subjects: Sequence[Subject]) -> Image.Image:
    """Return the picture, two rows of cells a subject."""
    step = CELL + GAP
    size = (2 * MARGIN + len(COLUMNS) * step - GAP, 2 * MARGIN + LINE + len(subjects) * (2 * step + GAP))
    picture, font = Image.new("RGB", size, PAPER), ImageFont.load_default(13)
    draw = ImageDraw.Draw(picture)
    for column, name in enumerate(COLUMNS):
        draw.text((MARGIN + column * step, MARGIN), name, fill=INK, font=font)
    for i, subject in enumerate(subjects):
        top = MARGIN + LINE + i * (2 * step + GAP)
        predicted, true = rows_of(model, subject)
        for row, cells in enumerate((predicted, true)):
            for column, cell in enumerate(cells, len(COLUMNS) - len(cells)):
                image = Image.fromarray(cell).convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
                picture.paste(image, (MARGIN + column * step, top + row * step))
        middle = top + step + CELL // 2
        draw.text((MARGIN, middle), subject.name.split("#")[0], fill=INK, font=font, anchor="lm")
        right = MARGIN + 3 * step - 3 * GAP
        draw.text((right, middle), "predicted above, true below", fill=PALE_INK, font=font, anchor="rm")
    return picture


def parser(prog: str | None) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = new_parser("The README's picture: views, predicted and true maps, both materials relit.", prog)
    add_debug(p)
    p.add_argument("checkpoint", type=Path, help="whatever launch/infer.py takes")
    p.add_argument("out", type=Path, help="a .webp file")
    p.add_argument("--samples", nargs="+", required=True, metavar="NAME", help="held-out samples")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Draw the picture."""
    args = parser(prog).parse_args(argv)
    model = load_generator(args.checkpoint)
    wanted = [SetSamples(index=name, part="val") for name in args.samples]
    subjects = [next(OpenedSet(model.config, one).subjects()) for one in wanted]
    with replacing(args.out) as part:
        gallery(model, subjects).save(part, format="WEBP", quality=88, method=6)


if __name__ == "__main__":
    run()
