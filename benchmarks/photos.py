"""Photos of built-in materials beside the true cameras, and maps from both.

    python launch/benchmark.py photos --to results
    python launch/benchmark.py photos --to results --checkpoint ./checkpoints --size 256
    python launch/benchmark.py photos --to results --real IN

Three perspective pictures of one material a family, under its own light, as a phone writes them: 3:4, JPEG, turned by
EXIF (`tests/support/phone.py`). They are registered as `infer --cameras auto` does. *Held*: all three are used, within
2 px of 512 of each other and 2 degrees of the true direction to the eye. With `--checkpoint` the maps from found and from
true cameras are compared with the true maps in the frame. `--real IN` takes a set's `input/clean` folder, say, and
registers each sample's views without what else is known of them; where a `cameras.json` lies beside it, errors are told.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.setting import write_figures
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser
from neuropbr_dist.data.cameras import CAMERAS_FILE, read_cameras
from neuropbr_dist.data.photos.align import align
from neuropbr_dist.data.photos.aligned import Aligned
from neuropbr_dist.data.photos.read import read_photo
from neuropbr_dist.data.photos.rectified import rectified
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference import InferenceGenerator, load_generator, predict
from neuropbr_dist.inference.own import pictures
from neuropbr_dist.materials.families import FAMILIES, family_name, material_maps
from neuropbr_dist.materials.plane import PlaneCamera
from neuropbr_dist.table import aligned as table_of
from tests.support.phone import judge, photograph, true_camera, true_cameras, true_frame

MOST_PIXELS, MOST_DEGREES = 2.0, 2.0


@dataclass(frozen=True)
class Row:
    """What became of three photos."""

    name: str
    used: int
    pixels: float | None
    degrees: float | None
    seconds: float
    """CPU time."""
    albedo_found: float | None = None
    """Mean absolute error of the albedo from the found cameras."""
    albedo_true: float | None = None
    remarks: str = ""

    @property
    def held(self) -> bool:
        """Whether all photos are used and right."""
        return (
            self.used == 3
            and (self.pixels is None or self.pixels <= MOST_PIXELS)
            and (self.degrees is None or self.degrees <= MOST_DEGREES)
        )


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py photos`."""
    p = new_parser(__doc__, prog)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument(
        "--height", type=int, default=3000, metavar="PX", help="of the photos (default %(default)s)"
    )
    p.add_argument("--seed", type=int, default=7, metavar="N", help="of the materials (default %(default)s)")
    p.add_argument(
        "--count", type=int, default=len(FAMILIES), metavar="N", help="materials (default: a family each)"
    )
    p.add_argument("--checkpoint", metavar="PATH", help="weights to compare maps by")
    p.add_argument(
        "--size", type=int, default=64, metavar="N", help="side of these maps (default %(default)s)"
    )
    p.add_argument("--real", type=Path, metavar="IN", help="folders of views in place of built-in materials")
    p.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the results go")
    add_debug(p)
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Photograph, register, compare; print the table."""
    args = parser(prog).parse_args(argv)
    logging.getLogger("neuropbr_dist").setLevel(logging.WARNING)
    model = None if args.checkpoint is None else load_generator(args.checkpoint)
    if model is not None and not model.on_plane:
        raise UserError(
            f"--checkpoint {args.checkpoint}: trained on views as they are; photos want model.align = plane"
        )
    args.to.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in of_real(args.real) if args.real else of_builtin(args, model):
        rows.append(row)
        print(
            f"{row.name}: {row.used} of 3, {_shown(row.pixels)} px, {_shown(row.degrees)}°  {row.remarks}",
            flush=True,
        )
    text = photos_page(rows)
    name = "photos-real" if args.real else "photos"
    (args.to / f"{name}.md").write_text(text + "\n")
    write_figures(args.to / f"{name}.json", {"rows": [asdict(row) for row in rows]})
    print(text)


def of_builtin(args: argparse.Namespace, model: InferenceGenerator | None) -> Iterator[Row]:
    """Photograph built-in materials, unless an earlier call did, and register them."""
    for index in range(args.count):
        name, true = family_name(args.seed, index), true_cameras(args.seed, index)
        folder = args.to / "photos" / f"{args.seed}_{index}_{args.height}"
        if not folder.exists():
            photograph(folder, args.seed, index, args.height)
        found, seconds, why = registered(folder)
        if found is None:
            yield Row(name, 0, None, None, seconds, remarks=why)
            continue
        used = sum(camera is not None for camera in found.cameras)
        judged = judge(found.cameras, true)
        errors: tuple[float | None, float | None] = (None, None)
        if model is not None:
            errors = albedo_errors(model, found, true, material_maps(args.seed, index, 512), args.size)
        pixels = judged.pixels if used > 1 else None
        yield Row(name, used, pixels, judged.degrees, seconds, *errors, remarks=" ".join(found.remarks))


def registered(folder: Path) -> tuple[Aligned | None, float, str]:
    """Register a folder's photos; return them, the CPU seconds, and why it failed."""
    before = time.process_time()
    try:
        found = align([read_photo(path) for path in pictures(folder)])
    except UserError as error:
        return None, time.process_time() - before, str(error)
    return found, time.process_time() - before, ""


def albedo_errors(
    model: InferenceGenerator, found: Aligned, true: Sequence[PlaneCamera], maps: np.ndarray, side: int
) -> tuple[float, float]:
    """Return the albedo's mean absolute error from found cameras and from true ones, in the same frame."""
    to_plane = true_frame(found.cameras, true)
    place = (np.arange(side) + 0.5) / side - 0.5
    x, y = np.meshgrid(place, -place)
    points = to_plane @ np.stack([x.ravel(), y.ravel(), np.ones(side * side)])
    target = repeated(torch.from_numpy(maps[:3].copy()).float() / 255, points[:2].T.reshape(side, side, 2),
                      float(np.linalg.norm(to_plane[:2, 0])))  # fmt: skip
    known = Aligned(found.photos, [true_camera(camera, to_plane) for camera in true])
    errors = [
        float((predict(model, *rectified(each, side))[:3] - target).abs().mean()) for each in (found, known)
    ]
    return errors[0], errors[1]


def repeated(albedo: Tensor, points: np.ndarray, share: float) -> Tensor:
    """Return a repeating albedo (3, S, S) at points (H, W, 2) of the plane, area-filtered.

    Args:
        share: of the tile that a side of the points spans.
    """
    coarse = max(1, round(points.shape[0] / share))
    if coarse < albedo.shape[-1]:
        albedo = F.interpolate(albedo[None], size=(coarse, coarse), mode="area")[0]
    side = albedo.shape[-1]
    wide = F.pad(albedo[None], (1, 1, 1, 1), mode="circular")
    inside = torch.from_numpy(points - np.floor(points + 0.5)).float()  # [-0.5, 0.5)
    grid = inside * torch.tensor([2.0, -2.0]) * side / (side + 2)
    return F.grid_sample(wide, grid[None], align_corners=False)[0]


def of_real(folder: Path) -> Iterator[Row]:
    """Register each sample's views; compare them with cameras, where these are known."""
    beside = folder.parent / CAMERAS_FILE
    known = read_cameras(beside).samples if beside.exists() else {}
    for sample in sorted(path for path in folder.iterdir() if path.is_dir()):
        found, seconds, why = registered(sample)
        if found is None:
            yield Row(sample.name, 0, None, None, seconds, remarks=why)
            continue
        true = known[sample.name].of(folder.name) if sample.name in known else (None,) * 3
        both = [(mine, theirs) for mine, theirs in zip(found.cameras, true, strict=True) if mine and theirs]
        used = sum(camera is not None for camera in found.cameras)
        pixels = degrees = None
        if len(both) > 1:
            judged = judge([mine for mine, _ in both], [theirs for _, theirs in both])
            pixels, degrees = judged.pixels, judged.degrees
        yield Row(sample.name, used, pixels, degrees, seconds, remarks=" ".join(found.remarks))


def photos_page(rows: Sequence[Row]) -> str:
    """Return the table, and how many held."""
    head = ["", "used", "px of 512", "degrees", "CPU s", "albedo MAE, found", "true", "held"]
    lines = [
        [
            row.name, str(row.used), _shown(row.pixels), _shown(row.degrees), f"{row.seconds:.0f}",
            _shown(row.albedo_found, 4), _shown(row.albedo_true, 4), "yes" if row.held else "no",
        ]
        for row in rows
    ]  # fmt: skip
    text = [*table_of([head, *lines]), "", f"held: {sum(row.held for row in rows)} of {len(rows)}"]
    pairs = [(row.albedo_found, row.albedo_true) for row in rows if row.albedo_found and row.albedo_true]
    if pairs:
        mine, true = np.mean(pairs, axis=0)
        text.append(
            f"albedo MAE: {mine:.4f} from found cameras, {true:.4f} from true ones: {mine / true:.2f} x"
        )
    return "\n".join(text)


def _shown(number: float | None, digits: int = 2) -> str:
    return "-" if number is None else f"{number:.{digits}f}"


if __name__ == "__main__":
    run()
