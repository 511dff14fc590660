"""`launch/infer.py`: from parsed arguments to files."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from neuropbr_dist.cluster import Environment, pick_device
from neuropbr_dist.config import LossConfig
from neuropbr_dist.data.device import decode_maps
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference.generator import InferenceGenerator, load_generator
from neuropbr_dist.inference.inputs import Subject, find_triples, open_subjects, open_triple
from neuropbr_dist.inference.pictures import write_pictures
from neuropbr_dist.inference.predict import measure, predict, resolve_precision, table
from neuropbr_dist.inference.relight import NAME as ANIMATION
from neuropbr_dist.inference.relight import write_animation
from neuropbr_dist.objectives import MetricSums, ReconstructionLoss


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
    sums, count = MetricSums(ReconstructionLoss(LossConfig()), "cpu"), 0
    for group in batched(subjects(args, model), args.batch_size):
        views = torch.stack([subject.views for subject, _ in group])
        preds = predict(model, views, precision=precision, tile=args.tile, overlap=args.overlap)
        for (subject, folder), pred in zip(group, preds, strict=True):
            show(subject, pred, folder, model.step, bits=args.bits, relight=args.relight)
            if subject.maps is not None:
                sums.update(pred[None], decode_maps(subject.maps[None]))
                count += 1
    if count > 1:
        print(f"Mean of {count} samples:\n{table(sums.result())}")


def show(subject: Subject, pred: Tensor, folder: Path, step: int, *, bits: int, relight: bool) -> None:
    """Write one material's files, and print how good they are where the true maps are known.

    Args:
        pred: (8, S, S) float.
        step: of the checkpoint.
    """
    print(f"{subject.label}, {subject.views.shape[-1]} px")
    if subject.maps is not None:
        print(table(measure(pred, subject.maps)))
    files = write_pictures(folder, subject, pred, bits=bits, title=f"{subject.title}, step {step}")
    if relight:
        target = None if subject.maps is None else decode_maps(subject.maps[None])[0]
        write_animation(folder / ANIMATION, pred, target)
        files.append(ANIMATION)
    print(f"Wrote {', '.join(files)} to {folder}")


Placed = tuple[Subject, Path]


def batched(found: Iterable[Placed], count: int) -> Iterator[list[Placed]]:
    """Up to `count` materials of one size at a time, in order."""
    group: list[Placed] = []
    for placed in found:
        if group and (len(group) == count or placed[0].views.shape != group[0][0].views.shape):
            yield group
            group = []
        group.append(placed)
    if group:
        yield group


def subjects(args: argparse.Namespace, model: InferenceGenerator) -> Iterator[Placed]:
    """What to predict, one at a time, and the folder for each."""
    out, size = Path(args.out_dir), model.config.data.image_size
    if args.size is not None:
        size = None if args.size == "native" else args.size
    if args.input_dir is None:
        data_folders = args.data_input_dir, args.data_output_dir, args.data
        index = args.sample_idx or 0
        for subject in open_subjects(model.config, index, args.split or "all", size, *data_folders):
            yield subject, out / subject.name if index == "all" else out
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
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}; allowed: 1 or more")
    if args.overlap is not None and args.tile is None:
        raise UserError("--overlap needs --tile")
