"""Entry points of the launch scripts: parse, call one function, turn a UserError into one line."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path

from neuropbr_dist.errors import UserError

# Other ranks hold their message back so long: if rank 0 met the same fault, its launcher ends them first.
RANK_0_FIRST_S = 3.0


def entry(function: Callable[[Sequence[str] | None], None]) -> Callable[..., None]:
    """A `UserError` becomes one line on stderr and exit code 2; a traceback only under `--debug`."""

    @wraps(function)
    def run(argv: Sequence[str] | None = None) -> None:
        quiet_libraries()
        try:
            function(argv)
        except UserError as error:
            if "--debug" in (sys.argv if argv is None else argv):
                raise
            rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
            if rank != "0":
                time.sleep(RANK_0_FIRST_S)
                print(f"rank {rank}: error: {error}", file=sys.stderr, flush=True)
            else:
                print(f"error: {error}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(2)  # other threads and ranks may wait in a collective for ever

    return run


def quiet_libraries() -> None:
    """Deprecations inside torch and DeepSpeed are not the user's business."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.|deepspeed\.")
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")


@entry
def train(argv: Sequence[str] | None = None) -> None:
    from neuropbr_dist.config.cli import train_parser

    args = train_parser().parse_args(argv)
    if args.debug:
        from neuropbr_dist.training.debug import debug

        debug(args)
    else:
        from neuropbr_dist.training.run import train as run

        run(args)


@entry
def infer(argv: Sequence[str] | None = None) -> None:
    from neuropbr_dist.inference.cli import infer_parser
    from neuropbr_dist.inference.run import infer as run

    run(infer_parser().parse_args(argv))


@entry
def export(argv: Sequence[str] | None = None) -> None:
    from neuropbr_dist.inference.cli import export_parser
    from neuropbr_dist.inference.run import export as run

    run(export_parser().parse_args(argv))


def data_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Generate or verify a data set.", allow_abbrev=False)
    commands = p.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="write built-in materials in the guide's layout")
    generate.add_argument("out", type=Path, help="folder for input/ and output/; an interrupted call goes on")
    generate.add_argument("--count", type=int, required=True, metavar="N", help="samples, one material each")
    generate.add_argument("--size", type=int, required=True, metavar="S", help="side in pixels")
    generate.add_argument("--seed", type=int, default=42, metavar="N", help="default %(default)s")
    generate.add_argument("--workers", type=int, default=1, metavar="N", help="default %(default)s")
    generate.add_argument("--clean-only", action="store_true", help="no dirty renders")
    verify = commands.add_parser("verify", help="decode every file, list every fault; exit code 1 if any")
    verify.add_argument("input_dir", metavar="IN", help="folder with clean/ and dirty/")
    verify.add_argument("output_dir", metavar="OUT", help="folder with one folder a material")
    verify.add_argument("--metadata", metavar="FILE", help="default IN/render_metadata.json")
    verify.add_argument("--fix-list", type=Path, metavar="FILE", help="write faulty samples' names to it")
    verify.add_argument("--workers", type=int, default=1, metavar="N", help="default %(default)s")
    verify.add_argument("--resume", type=Path, metavar="FILE", help="state file of what is checked already")
    for command in (generate, verify):
        command.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return p


@entry
def data(argv: Sequence[str] | None = None) -> None:
    args = data_parser().parse_args(argv)
    if args.command == "generate":
        from neuropbr_dist.data.builtin import generate

        dirty = not args.clean_only
        generate(
            args.out, count=args.count, size=args.size, seed=args.seed, workers=args.workers,
            curriculum_dirty=dirty,
        )  # fmt: skip
        print(f"Wrote {args.count} samples of {args.size} px to {args.out}/input and {args.out}/output")
        return
    from neuropbr_dist.data.verify import verify

    report = verify(
        args.input_dir, args.output_dir, args.metadata,
        workers=args.workers, fix_list=args.fix_list, resume=args.resume,
    )  # fmt: skip
    print(report)
    if not report.clean:
        sys.exit(1)


@entry
def demo(argv: Sequence[str] | None = None) -> None:
    from neuropbr_dist.demo import demo as run

    run()
