"""`launch/infer.py`: from parsed arguments to files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from neuropbr_dist.cluster import Environment, pick_device
from neuropbr_dist.data.device import decode_maps
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference.generator import InferenceGenerator, load_generator
from neuropbr_dist.inference.inputs import Subject, find_triples, open_sample, open_triple
from neuropbr_dist.inference.pictures import write_pictures
from neuropbr_dist.inference.predict import measure, predict, resolve_precision, table
from neuropbr_dist.inference.relight import NAME as ANIMATION
from neuropbr_dist.inference.relight import write_animation


def infer(args: argparse.Namespace) -> None:
    """Predict a sample, or one or more triples of renders, and write what comes out."""
    refuse_idle_flags(args)
    device = pick_device(args.device, Environment(launcher="none"))
    model = load_generator(args.checkpoint).to(device)
    precision = resolve_precision(args.precision, device)
    parameters = sum(p.numel() for p in model.parameters())
    kind = ", averaged weights" if model.averaged else ""
    print(
        f"Generator of {model.origin} (step {model.step}{kind}): {parameters / 1e6:.1f} M, {device}, {precision}"
    )
    for subject, folder in subjects(args, model):
        pred = predict(model, subject.views, precision=precision, tile=args.tile, overlap=args.overlap)
        print(f"{subject.label}, {subject.views.shape[-1]} px")
        if subject.maps is not None:
            print(table(measure(pred, subject.maps)))
        title = f"{subject.title}, step {model.step}"
        files = write_pictures(folder, subject, pred, bits=args.bits, title=title)
        if args.relight:
            target = None if subject.maps is None else decode_maps(subject.maps[None])[0]
            write_animation(folder / ANIMATION, pred, target)
            files.append(ANIMATION)
        print(f"Wrote {', '.join(files)} to {folder}")


def subjects(args: argparse.Namespace, model: InferenceGenerator) -> Iterator[tuple[Subject, Path]]:
    """What to predict, one at a time, and the folder for each."""
    out, size = Path(args.out_dir), model.config.data.image_size
    if args.size is not None:
        size = None if args.size == "native" else args.size
    if args.input_dir is None:
        data_folders = args.data_input_dir, args.data_output_dir, args.data
        yield open_sample(model.config, args.sample_idx or 0, args.split or "all", size, *data_folders), out
        return
    renders = Path(args.input_dir)
    if renders.resolve() == out.resolve():
        raise UserError(f"--out-dir {out}: the same as --input-dir; name another folder")
    triples = find_triples(renders, skip=out)
    for triple in triples:
        yield open_triple(triple, size), out if triples == [renders] else out / triple.name


def refuse_idle_flags(args: argparse.Namespace) -> None:
    """A flag that would do nothing is a mistake."""
    for name in ("split", "data", "data_input_dir", "data_output_dir"):
        if args.input_dir is not None and getattr(args, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is about --sample-idx; leave it out with --input-dir"
            )
    if args.data is not None and (args.data_input_dir or args.data_output_dir):
        raise UserError("--data names a packed set, --data-input-dir PNG files; name one or the other")
    if args.overlap is not None and args.tile is None:
        raise UserError("--overlap needs --tile")
