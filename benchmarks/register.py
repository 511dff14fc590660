"""Cameras that `data register` finds, beside the true ones.

    python launch/benchmark.py register --builtin 30 --size 512 --to results
    python launch/benchmark.py register --upstream 10 --size 1024 --side 2048 --to results
    python launch/benchmark.py register --set IN OUT --true cameras.json --to results

The true cameras are hidden from the search. Errors are means over the map, in pixels of a map of `--side`, modulo
whole tiles where the plane repeats. `--builtin N` makes N built-in samples in `--work`, `--upstream N` pictures of built-in
materials as upstream's renderer makes them (`tests/support/upstream_renders.py`). `--to` gets `register-NAME.json`, a line
a view: nothing of the pictures is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.ranks import ROOT
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser
from neuropbr_dist.data.builtin import generate
from neuropbr_dist.data.cameras import CAMERAS_FILE, SampleCameras, read_cameras
from neuropbr_dist.data.files.headers import read_header
from neuropbr_dist.data.register.pose import error_on_map
from neuropbr_dist.data.register.registration import Registration
from neuropbr_dist.data.register.run import register
from neuropbr_dist.data.register.work import SURE
from neuropbr_dist.errors import UserError
from tests.support.upstream_renders import write_upstream_set

BOUNDS = (0.25, 0.5, 1, 2, 3, 4)
"""Pixels."""


@dataclass(frozen=True)
class Judged:
    """One view's found camera beside the true one."""

    view: str
    material: str
    pixels: float | None
    """Error; None: no camera was found, or the true one isn't known."""
    confidence: float
    correlation: float
    known: bool
    """Whether the true camera is known."""

    @property
    def sure(self) -> bool:
        """Whether training would use it."""
        return self.confidence > SURE


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py register`."""
    p = new_parser(__doc__, prog)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--builtin", type=int, metavar="N", help="built-in samples, clean and dirty")
    what.add_argument("--upstream", type=int, metavar="N", help="samples rendered after upstream's facts")
    what.add_argument("--set", nargs=2, metavar=("IN", "OUT"), help="a set of one's own")
    p.add_argument("--true", type=Path, metavar="FILE", help="its true cameras; default IN/cameras.json")
    p.add_argument("--size", type=int, default=512, metavar="PX", help="of what is made; default %(default)s")
    p.add_argument(
        "--side", type=int, metavar="PX", help="of the map that errors are told for; default its own"
    )
    p.add_argument("--seed", type=int, default=7, metavar="N", help="of what is made; default %(default)s")
    p.add_argument("--fov", type=float, default=55.0, metavar="DEGREES", help="as data register has it")
    p.add_argument("--prior", default="auto", help="as data register has it")
    p.add_argument("--workers", type=int, default=1, metavar="N", help="default %(default)s")
    p.add_argument("--name", help="of the result; default the kind of set")
    p.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "register", metavar="DIR", help="where sets are made"
    )
    p.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the results go")
    add_debug(p)
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Make the set, register it, compare, print the table."""
    args = parser(prog).parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    renders, materials = made(args)
    true = read_cameras(args.true or renders / CAMERAS_FILE).samples
    args.to.mkdir(parents=True, exist_ok=True)
    name = args.name or ("builtin" if args.builtin else "upstream" if args.upstream else "set")
    before = cpu_seconds()
    registration = register(
        renders, materials, to=args.to / f"register-{name}-cameras.json", prior=args.prior, field_of_view=args.fov,
        overwrite=True, workers=args.workers,
    )  # fmt: skip
    spent = cpu_seconds() - before
    side = args.side or read_header(next(materials.glob("*/albedo.png"))).width
    views = judged(registration, read_cameras(args.to / f"register-{name}-cameras.json").samples, true, side)
    lines = [json.dumps(asdict(view)) for view in views]
    (args.to / f"register-{name}.json").write_text("\n".join(lines) + "\n")
    print(registration, "", table(name, views, side, spent), sep="\n")


def made(args: argparse.Namespace) -> tuple[Path, Path]:
    """Return the set's folders, made first where they are this program's."""
    if args.set:
        return Path(args.set[0]), Path(args.set[1])
    root = args.work / f"{'builtin' if args.builtin else 'upstream'}-{args.size}-{args.seed}"
    if args.builtin:
        generate(root, count=args.builtin, size=args.size, seed=args.seed, workers=args.workers)
    else:
        write_upstream_set(root, args.upstream, args.size, args.seed)
    return root / "input", root / "output"


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def judged(
    registration: Registration, found: dict[str, SampleCameras], true: dict[str, SampleCameras], side: int
) -> list[Judged]:
    """Return every view of the registration, compared in pixels of a map of `side`."""
    views = []
    for outcome in registration.outcomes:
        for renders, seen in outcome.views.items():
            theirs = true.get(outcome.name)
            for number, view in enumerate(seen):
                right = theirs.of(renders)[number] if theirs else None
                mine = found[outcome.name].of(renders)[number]
                pixels = None
                if right and mine:
                    wrap = bool(theirs and theirs.wrap)
                    pixels = error_on_map(mine.map_to_view, right.map_to_view, wrap) * side
                views.append(
                    Judged(f"{outcome.name}/{renders}/{number}", outcome.material, pixels, view.confidence,
                           view.correlation, right is not None)
                )  # fmt: skip
    return views


def table(name: str, views: Sequence[Judged], side: int, spent: float) -> str:
    """Return what it came to, and each view that is wrong or not sure."""
    if not views:
        raise UserError("no views")
    known = [view for view in views if view.known]
    errors = np.array([np.inf if view.pixels is None else view.pixels for view in known])
    sure = np.array([view.sure for view in known], bool)
    rows = [
        f"{name}: {len(views)} views, {len(known)} with a true camera; {spent / len(views):.2f} CPU seconds a view"
    ]
    rows.append(f"sure: {sure.sum()} of these, {sum(v.sure for v in views if not v.known)} of the others")
    if sure.any():
        rows.append(
            f"median error of the sure {np.median(errors[sure]):.2f} px of {side}, the worst {errors[sure].max():.1f}"
        )
    for bound in BOUNDS:
        rows.append(
            f"within {bound:g} px: {(errors <= bound).mean():.1%}, of the sure {(errors[sure] <= bound).mean():.1%}, "
            f"or not sure {((errors <= bound) | ~sure).mean():.1%}"
        )
    rows.append(f"wrong by more than 4 px and sure: {int((sure & (errors > 4)).sum())}")
    for view in views:
        if not view.sure or (view.known and (view.pixels is None or view.pixels > 1)):
            error = "-" if view.pixels is None else f"{view.pixels:.2f}"
            rows.append(
                f"  {view.view} {view.material}: {error} px, confidence {view.confidence:.2f}, "
                f"correlation {view.correlation:.2f}"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    run()
