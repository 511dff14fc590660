"""`neuropbr data pack`: a set decoded once, for training at memory speed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuropbr_dist.commands.data.files import add_conventions, add_set, set_of, workers_of
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr data pack`."""
    p = new_parser("Verify a set, and decode it once into one that loads at memory speed.", prog)
    add_set(p)
    p.add_argument("dest", type=Path, metavar="DEST", help="folder; an interrupted call goes on")
    p.add_argument("--skip-faulty", action="store_true", help="pack the samples without a fault")
    add_conventions(p)
    p.add_argument(
        "--linear-views",
        action="store_true",
        help="renders are linear light as bytes, without sRGB (upstream's)",
    )
    add_debug(p)
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Pack under a lock on DEST, and print what came of it; exit code 1 where faults are in the way."""
    args = parser(prog).parse_args(argv)
    workers, folders = workers_of(args), set_of(args)
    from neuropbr_dist.checkpoint import RunLock
    from neuropbr_dist.data.packed.index import read_metadata
    from neuropbr_dist.data.packed.pack import pack, prepare_folder
    from neuropbr_dist.data.packed.records import level_sides
    from neuropbr_dist.materials.conventions import Conventions

    prepare_folder(args.dest)  # before the lock's file is in it
    with RunLock(args.dest, who="packer", remedy="wait for it, or name another DEST"):
        verification = pack(
            *folders, args.dest, args.metadata,
            workers=workers, skip_faulty=args.skip_faulty,
            conventions=Conventions(args.flip_green, args.linear_albedo, args.linear_views),
        )  # fmt: skip
    print(verification)
    if not verification.clean and not args.skip_faulty:
        print(f"Nothing is packed: mend the faults and start again, or --skip-faulty ({args.dest} goes on)")
        sys.exit(1)
    metadata = read_metadata(args.dest)
    gib = sum(metadata["shards"].values()) / 2**30
    sides = ", ".join(map(str, level_sides(max(metadata["sides"]))))
    samples = f"{metadata['samples']} sample entries of " if metadata["samples"] else ""
    print(
        f"Packed {samples}{metadata['materials']} materials into {args.dest}: {gib:.2f} GiB, {sides} px; "
        f"train on it by {'--data' if metadata['samples'] else '--materials'} {args.dest}"
    )
