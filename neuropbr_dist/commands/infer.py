"""`neuropbr infer`: maps from renders and photos."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, add_set, assigned, named, new_parser
from neuropbr_dist.errors import UserError


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr infer`."""
    p = new_parser("Pictures of a material in, its four PBR maps out.", prog)
    p.add_argument(
        "--checkpoint", type=named, required=True, metavar="PATH",
        help="a run's folder (newest good checkpoint), a checkpoint, or a file of launch/export.py",
    )  # fmt: skip
    what = p.add_mutually_exclusive_group()
    what.add_argument(
        "--sample-idx", type=all_or_index, metavar="N|all",
        help="sample of the run's data set (default 0), or every one, each in a folder of its name",
    )  # fmt: skip
    what.add_argument(
        "--sample",
        type=named,
        metavar="NAME",
        help="sample of the run's data set by its name, or as dirty/NAME",
    )
    what.add_argument(
        "--input-dir", metavar="DIR",
        help="one to three photos (PNG, JPEG, HEIC), or three PNG renders, sorted alphabetically; or a folder of such folders",
    )  # fmt: skip
    p.add_argument(
        "--cameras", metavar="auto|none|FILE",
        help="of --input-dir: auto registers photos to each other and finds the plane that they show, none takes each as "
        "it is, FILE holds them (default: DIR/cameras.json, else auto)",
    )  # fmt: skip
    p.add_argument(
        "--reference", type=int, metavar="N", help="photo of --input-dir that says where up is, from 0 (default: the first)"
    )  # fmt: skip
    p.add_argument(
        "--out-dir", default="inference_outputs", metavar="DIR",
        help="maps, views and a figure; a folder in it for each of several materials, {name} in it is a sample's "
        "(default %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--split", choices=("val", "train", "all"),
        help="all samples, or one side of the run's split: what --sample-idx counts in; alone it means every one, and "
        "a table of how good they are",
    )  # fmt: skip
    p.add_argument("--data", metavar="DIR", help="packed set with the samples of --sample-idx")
    p.add_argument(
        "--materials", metavar="DIR", help="materials alone for --sample-idx: their views are rendered"
    )
    p.add_argument("--data-input-dir", metavar="DIR", help="where the renders of --sample-idx lie now")
    p.add_argument("--data-output-dir", metavar="DIR", help="where their true maps lie now")
    p.add_argument(
        "--size", type=native_or_side, metavar="native|N",
        help="side in pixels that views are resized to (default: the run's; for photos no more than they show); short for "
        "--set data.image_size=N",
    )  # fmt: skip
    add_set(p, "data.FIELD=VALUE", "a field of the run's data; repeatable")
    p.add_argument("--device", default="auto", help="auto (CUDA, then MPS, then CPU), cuda, cuda:N, mps, cpu")
    p.add_argument(
        "--precision", default="auto", choices=("auto", "bf16", "fp32"),
        help="auto: bf16 on GPUs that have it",
    )  # fmt: skip
    p.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="materials in a forward pass (default %(default)s)",
    )
    p.add_argument(
        "--tile", type=int, metavar="N",
        help="predict in tiles of N px and blend them, for pictures above memory; attention sees one tile",
    )  # fmt: skip
    p.add_argument("--overlap", type=int, metavar="M", help="px that tiles share (default: a quarter of one)")
    p.add_argument(
        "--turns", type=int, default=1, metavar="N",
        help="predict in N of the orientations that the run was trained in (8 with flips and rotations), one after "
        "another, and take the mean (default %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--sample-ranks", type=int, default=1, metavar="K",
        help="the K ranks that torchrun has started share each picture by rows: whole, above one GPU's memory",
    )  # fmt: skip
    p.add_argument("--bits", type=int, default=8, choices=(8, 16), help="a channel of the maps' files")
    p.add_argument(
        "--relight", action="store_true",
        help="also write relit.webp: the material (beside the true one, if known) under a moving lamp",
    )  # fmt: skip
    add_debug(p)
    return p


def all_or_index(text: str) -> int | str:
    """Return `all`, or a sample's place."""
    if text == "all":
        return text
    if not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: all, or a sample's number")
    return int(text)


def native_or_side(text: str) -> int | str:
    """Return `native`, or a side in pixels."""
    if text == "native":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: native, or a number of pixels")
    return int(text)


def check_idle_flags(args: argparse.Namespace) -> None:
    """Refuse flags that would do nothing."""
    for name in ("split", "data", "materials", "data_input_dir", "data_output_dir"):
        if args.input_dir is not None and getattr(args, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is about --sample-idx; leave it out with --input-dir"
            )
    for name in ("cameras", "reference"):
        if args.input_dir is None and getattr(args, name) is not None:
            raise UserError(f"--{name} is about --input-dir; leave it out, or name photos")
    if args.reference is not None and args.cameras not in (None, "auto"):
        raise UserError(f"--reference is about --cameras auto; leave it out with --cameras {args.cameras}")
    if args.data is not None and (args.data_input_dir or args.data_output_dir):
        raise UserError("--data names a packed set, --data-input-dir PNG files; name one or the other")
    if args.materials is not None and (args.data or args.data_input_dir or args.data_output_dir):
        raise UserError("--materials is a set of its own; name no other beside it")
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}; allowed: 1 or more")
    if args.sample_ranks < 1:
        raise UserError(f"--sample-ranks {args.sample_ranks}; allowed: 1 or more")
    if args.sample_ranks > 1 and args.tile is not None:
        raise UserError("--sample-ranks and --tile are two ways for large pictures; name one or the other")
    if args.overlap is not None and args.tile is None:
        raise UserError("--overlap needs --tile")


def chosen(args: argparse.Namespace) -> int | str:
    """Return which samples of the set: a name, a place, or `all`."""
    if args.sample is not None:
        return str(args.sample)
    if args.sample_idx is not None:
        return args.sample_idx  # type: ignore[no-any-return]
    return 0 if args.split is None else "all"


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Predict a sample, or pictures of one's own, and write what comes out."""
    args = parser(prog).parse_args(argv)
    check_idle_flags(args)
    overrides = assigned(args.set, "data.")
    if args.size is not None:
        overrides = overrides.with_size(None if args.size == "native" else args.size)
    from neuropbr_dist.inference.own import Own
    from neuropbr_dist.inference.run import Request, infer
    from neuropbr_dist.inference.samples import SetPlace, SetSamples

    materials: Own | SetSamples
    if args.input_dir is not None:
        materials = Own(Path(args.input_dir), args.cameras, args.reference)
    else:
        place = SetPlace(
            packed_dir=args.data, materials_dir=args.materials,
            input_dir=args.data_input_dir, output_dir=args.data_output_dir,
        )  # fmt: skip
        materials = SetSamples(index=chosen(args), part=args.split or "all", place=place)
    infer(
        Request(
            checkpoint=args.checkpoint, materials=materials, out_dir=Path(args.out_dir), overrides=overrides,
            device=args.device, precision=args.precision, batch_size=args.batch_size,
            tile=args.tile, overlap=args.overlap, turns=args.turns, bits=args.bits, relight=args.relight, sample_ranks=args.sample_ranks,
        )
    )  # fmt: skip
