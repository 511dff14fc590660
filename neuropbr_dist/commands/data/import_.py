"""`neuropbr data import`: other people's materials -> a folder of materials."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuropbr_dist.commands.data.files import add_conventions, add_workers, workers_of
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, named, new_parser
from neuropbr_dist.errors import UserError

if TYPE_CHECKING:
    from neuropbr_dist.data.importer.jobs import Library


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr data import`."""
    p = new_parser(
        "Make a folder of materials of anybody's: packs of ambientCG, Poly Haven, …, or MatSynth.", prog
    )
    p.add_argument("src", type=named, metavar="SRC",
                   help="folder of any depth, parquet file or folder of them, or hub:OWNER/NAME")  # fmt: skip
    p.add_argument("dest", type=Path, metavar="DEST", help="folder; an interrupted call goes on")
    p.add_argument("--size", type=int, metavar="S", help="side in pixels; default the pictures' own")
    p.add_argument("--bits", type=int, choices=(8, 16), default=8, help="default %(default)s")
    p.add_argument("--normals", choices=("opengl", "directx"),
                   help="of normal maps where neither their name nor their slopes tell")  # fmt: skip
    p.add_argument("--tiles", action="store_true",
                   help="of a picture that isn't square take each whole square; default the middle one")  # fmt: skip
    p.add_argument("--strict", action="store_true", help="write nothing if anything would be left out")
    p.add_argument("--licence", type=_list, default=(), metavar="L,…", help="of MatSynth: cc0,cc-by,…")
    p.add_argument("--category", type=_list, default=(), metavar="C,…", help="of MatSynth: wood,metal,…")
    p.add_argument(
        "--split", type=_list, default=(), metavar="S,…", help="of MatSynth: train,test; default all"
    )
    add_conventions(p)
    add_workers(p)
    add_debug(p)
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Import under a lock on DEST, and print what was taken for what; exit code 1 where anything was left out."""
    args = parser(prog).parse_args(argv)
    workers = workers_of(args)
    if args.size is not None and args.size < 4:
        raise UserError(f"--size {args.size}: must be 4 or more")
    from neuropbr_dist.checkpoint import RunLock
    from neuropbr_dist.data.importer.convert import Options
    from neuropbr_dist.data.importer.run import import_materials, prepare_folder

    library = _open(args)
    prepare_folder(args.dest)  # before the lock's file is in it
    with RunLock(args.dest, who="importer", remedy="wait for it, or name another DEST"):
        summary = import_materials(
            library, args.dest,
            Options(args.size, args.bits, args.normals, args.tiles, args.flip_green, args.linear_albedo),
            workers=workers, strict=args.strict,
        )  # fmt: skip
    print(summary)
    if args.strict and not summary.clean:
        print("Nothing is written (--strict)")
    elif summary.imported:
        print(f"In {args.dest}: look at contact_sheet_1.jpg; import.txt has this table")
    if not summary.clean:
        sys.exit(1)


def _open(args: argparse.Namespace) -> Library:
    from neuropbr_dist.data.importer.folders import FolderLibrary
    from neuropbr_dist.data.importer.matsynth import HUB, HubLibrary, ParquetLibrary, Wanted, is_parquet

    wanted = Wanted(args.licence, args.category, args.split)
    if args.src.startswith(HUB):
        return HubLibrary(args.src.removeprefix(HUB), wanted)
    src = Path(args.src)
    if is_parquet(src):
        return ParquetLibrary(src, wanted)
    if wanted != Wanted():
        raise UserError(
            f"{src}: --licence, --category and --split are for MatSynth: a folder of pictures has none"
        )
    return FolderLibrary(src, args.dest)


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
