"""Entry points of the launch scripts: parse, call one function, turn a UserError into one line."""

from __future__ import annotations

import argparse
import io
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from neuropbr_dist.errors import UserError

if TYPE_CHECKING:
    from neuropbr_dist.data.files.verify import Report

# Other ranks hold their message back so long: if rank 0 met the same fault, its launcher ends them first.
RANK_0_FIRST_S = 3.0
READER_GONE = 128 + signal.SIGPIPE


def entry(function: Callable[[Sequence[str] | None], None]) -> Callable[..., None]:
    """A `UserError` becomes one line on stderr and exit code 2, Ctrl-C one word and 130; a traceback only
    under `--debug`. Where nobody reads the output any more (`| head`), the exit code is 141, without a word."""

    @wraps(function)
    def run(argv: Sequence[str] | None = None) -> None:
        quiet_libraries()
        for stream in text_streams():
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding hasn't
        try:
            function(argv)
            flush()
        except SystemExit:
            flush()
            raise
        except BrokenPipeError:
            if not reader_gone():
                raise
            os._exit(READER_GONE)
        except KeyboardInterrupt:
            if "--debug" in (sys.argv if argv is None else argv):
                raise
            end("interrupted", 128 + signal.SIGINT)
        except UserError as error:
            if "--debug" in (sys.argv if argv is None else argv):
                raise
            rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
            if rank != "0":
                signal.signal(signal.SIGTERM, lambda *_: os._exit(2))  # so srun's own exit code is 2 as well
                time.sleep(RANK_0_FIRST_S)
                end(f"rank {rank}: error: {error}", 2)
            end(f"error: {error}", 2)

    return run


def text_streams() -> list[io.TextIOWrapper]:
    """stdout and stderr, where they are files: a closed one is None, a notebook's is something else."""
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]


def flush() -> None:
    """What is left to write is written here: at the interpreter's end a closed pipe would be a traceback."""
    try:
        for stream in text_streams():
            stream.flush()
    except BrokenPipeError:
        os._exit(READER_GONE)


def reader_gone() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads; a worker's broken pipe is another matter."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def end(message: str, code: int) -> NoReturn:
    """Say why and end at once: other threads and ranks may wait in a collective for ever."""
    with suppress(BrokenPipeError):
        print(message, file=sys.stderr, flush=True)
        for stream in text_streams():
            stream.flush()
    os._exit(code)


def quiet_libraries() -> None:
    """Deprecations inside torch and DeepSpeed are not the user's business."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.|deepspeed\.")
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")


@entry
def train(argv: Sequence[str] | None = None) -> None:
    """`launch/train.py`: train, or with `--debug` look at one batch."""
    from neuropbr_dist.commands.train import start_of, train_parser

    args = train_parser().parse_args(argv)
    if args.debug:
        from neuropbr_dist.training.debug import debug

        start = start_of(args)
        debug(start.overrides.configuration(), start)
    else:
        from neuropbr_dist.training.run import train as run

        start = start_of(args)
        run(start.overrides.configuration(), start)


@entry
def infer(argv: Sequence[str] | None = None) -> None:
    """`launch/infer.py`: maps from renders."""
    from neuropbr_dist.inference.cli import infer_parser
    from neuropbr_dist.inference.run import infer as run

    run(infer_parser().parse_args(argv))


@entry
def export(argv: Sequence[str] | None = None) -> None:
    """`launch/export.py`: weights in other forms, and checks."""
    from neuropbr_dist.inference.export_cli import export as run
    from neuropbr_dist.inference.export_cli import export_parser

    run(export_parser().parse_args(argv))


def data_parser() -> argparse.ArgumentParser:
    """Every flag of `launch/data.py`."""
    p = argparse.ArgumentParser(description="Generate, verify or pack a data set.", allow_abbrev=False)
    commands = p.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="write built-in materials in the guide's layout")
    generate.add_argument("out", type=Path, help="folder for input/ and output/; an interrupted call goes on")
    generate.add_argument("--count", type=int, required=True, metavar="N", help="samples, one material each")
    generate.add_argument("--size", type=int, required=True, metavar="S", help="side in pixels")
    generate.add_argument("--seed", type=int, default=42, metavar="N", help="default %(default)s")
    generate.add_argument("--workers", type=int, default=1, metavar="N", help="default %(default)s")
    generate.add_argument("--clean-only", action="store_true", help="no dirty renders")
    verify = commands.add_parser("verify", help="decode every file, list every fault; exit code 1 if any")
    verify.add_argument("--fix-list", type=Path, metavar="FILE", help="write faulty samples' names to it")
    verify.add_argument("--resume", type=Path, metavar="FILE", help="state file of what is checked already")
    pack = commands.add_parser("pack", help="verify, and decode once into a set that loads at memory speed")
    pack.add_argument("--skip-faulty", action="store_true", help="pack the samples without a fault")
    for command in (verify, pack):
        command.add_argument("input_dir", metavar="IN", help="folder with clean/ and dirty/")
        command.add_argument("output_dir", metavar="OUT", help="folder with one folder a material")
        command.add_argument("--metadata", metavar="FILE", help="default IN/render_metadata.json")
        command.add_argument("--workers", type=int, metavar="N", help="default: all cores it may use")
    pack.add_argument("dest", type=Path, metavar="DEST", help="folder; an interrupted call goes on")
    for command in (generate, verify, pack):
        command.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return p


@entry
def data(argv: Sequence[str] | None = None) -> None:
    """`launch/data.py`: generate, verify or pack; exit code 1 where a set has faults."""
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
    from neuropbr_dist.processes import usable_cores

    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be 1 or more")
    args.workers = args.workers or usable_cores()
    report = pack_set(args) if args.command == "pack" else verify_set(args)
    if not report.clean:
        sys.exit(1)


def verify_set(args: argparse.Namespace) -> Report:
    """Verify, and print the report."""
    from neuropbr_dist.data.files.verify import verify

    report = verify(
        args.input_dir, args.output_dir, args.metadata,
        workers=args.workers, fix_list=args.fix_list, resume=args.resume,
    )  # fmt: skip
    print(report)
    return report


def pack_set(args: argparse.Namespace) -> Report:
    """Pack under a lock on DEST, and print what came of it. Faults that were skipped as asked are taken out of the report."""
    from neuropbr_dist.checkpoint import RunLock
    from neuropbr_dist.data.packed.index import read_head
    from neuropbr_dist.data.packed.pack import claim, pack
    from neuropbr_dist.data.packed.records import level_sides

    claim(Path(args.dest))  # before the lock's file is in it
    with RunLock(args.dest, who="packer", remedy="wait for it, or name another DEST"):
        report = pack(
            args.input_dir, args.output_dir, args.dest, args.metadata, workers=args.workers,
            skip_faulty=args.skip_faulty,
        )  # fmt: skip
    print(report)
    if not report.clean and not args.skip_faulty:
        print(f"Nothing is packed: mend the faults and start again, or --skip-faulty ({args.dest} goes on)")
        return report
    head = read_head(args.dest)
    gib = sum(head["shards"].values()) / 2**30
    sides = ", ".join(map(str, level_sides(max(head["sides"]))))
    print(
        f"Packed {head['samples']} sample entries of {head['materials']} materials into {args.dest}: "
        f"{gib:.2f} GiB, {sides} px; train on it by --data {args.dest}"
    )
    report.faults.clear()  # they were left out, as asked
    return report


def report_parser() -> argparse.ArgumentParser:
    """Every flag of `launch/report.py`."""
    p = argparse.ArgumentParser(
        description="Write a run's page: one HTML file with its curves, pictures and history, for any browser.",
        allow_abbrev=False,
    )
    p.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run's folder; the page goes into it")
    p.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return p


@entry
def report(argv: Sequence[str] | None = None) -> None:
    """`launch/report.py`: write a run's page."""
    from neuropbr_dist.report import write_page

    path = write_page(report_parser().parse_args(argv).run_dir)
    print(f"Wrote {path} ({path.stat().st_size / 2**20:.1f} MiB): open it in a browser")


@entry
def demo(argv: Sequence[str] | None = None) -> None:
    """`launch/demo.py`: train, infer and report on built-in materials."""
    argparse.ArgumentParser(
        description="Train, infer and report on built-in materials, into demo_run/. A former demo_run is overwritten.",
        allow_abbrev=False,
    ).parse_args(argv)
    from neuropbr_dist.demo import demo as run

    run()


@entry
def benchmark(argv: Sequence[str] | None = None) -> None:
    """`launch/benchmark.py`: measure, and write figures."""
    from benchmarks.cli import benchmark as run

    run(argv)


def submit_parser() -> argparse.ArgumentParser:
    """Flags of `launch/submit.py`; all others are those of `launch/train.py`."""
    p = argparse.ArgumentParser(
        description="Submit a training run through submitit. All other words go to launch/train.py.",
        allow_abbrev=False,
    )
    p.add_argument("--executor", choices=("slurm", "local", "debug"), default="slurm", help="default slurm")
    p.add_argument("--name", default="neuropbr", help="the job's name")
    p.add_argument("--log-dir", type=Path, default=Path("submitit"), metavar="DIR", help="default ./submitit")
    p.add_argument("--nodes", type=int, default=1, metavar="N", help="default 1")
    p.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="default 0: on CPU")
    p.add_argument("--tasks-per-node", type=int, metavar="N", help="ranks; default one per GPU, or one")
    p.add_argument("--cpus-per-task", type=int, metavar="N")
    p.add_argument("--mem-gb", type=float, metavar="N", help="memory a node")
    p.add_argument("--time", type=int, default=1440, dest="minutes", metavar="MINUTES", help="default 1440")
    p.add_argument("--warning", type=int, default=120, dest="warning_seconds", metavar="SECONDS",
                   help="save and requeue so long before the time limit; default 120")  # fmt: skip
    p.add_argument("--max-timeouts", type=int, default=100, metavar="N", help="requeues at most; default 100")
    p.add_argument("--python", metavar="COMMAND", help="starts Python on the nodes, e.g. in a container")
    p.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="shell line before the ranks start; repeatable",
    )
    p.add_argument("--sbatch", action="append", default=[], metavar="NAME=VALUE",
                   help="sbatch option: partition=gpu, account=x, qos=y, ...; repeatable")  # fmt: skip
    p.add_argument("--dry-run", action="store_true", help="print the batch file, submit nothing")
    p.add_argument(
        "--follow", action="store_true", help="show rank 0's output and the job's state until the end"
    )
    p.add_argument(
        "--doctor",
        action="store_true",
        help="submit nothing: compare the nodes that this command runs on (under srun, torchrun, deepspeed); exit code 1 if they differ",
    )
    return p


def train_words(words: Sequence[str]) -> str | None:
    """One rank's training inside a submitted job. A `UserError` is left to submitit, which hands it back."""
    from neuropbr_dist.commands.train import start_of, train_parser
    from neuropbr_dist.training.run import train as run

    quiet_libraries()
    start = start_of(train_parser().parse_args(words))
    return run(start.overrides.configuration(), start)


@entry
def submit(argv: Sequence[str] | None = None) -> None:
    """`launch/submit.py`: submit a run, show its batch file, or compare nodes (`--doctor`, exit code 1 if they differ)."""
    from neuropbr_dist.cluster import submit as submission
    from neuropbr_dist.commands.train import config_of
    from neuropbr_dist.config import TrainConfig

    args, words = submit_parser().parse_known_args(argv)
    cfg = config_of(words)  # a wrong word or field fails here, not in the queue
    if args.doctor:
        from neuropbr_dist.training.doctor import doctor

        sys.exit(0 if doctor(cfg) else 1)
    folder = cfg.training.checkpoint_dir
    if folder == TrainConfig().training.checkpoint_dir:  # each submission is a run of its own
        folder = f"{folder}/{args.name}-{submission.JOB_ID}"
    options = vars(args) | {"sbatch": dict(word.split("=", 1) for word in args.sbatch)}
    dry_run, watch, _ = options.pop("dry_run"), options.pop("follow"), options.pop("doctor")
    executor = submission.make_executor(submission.Request(**options), Path(__file__).resolve().parents[1])
    if dry_run:
        print(submission.sbatch_text(executor), end="")
        return
    job = submission.send(executor, submission.Job(train_words, words, folder))
    if args.executor == "debug":  # nothing runs before its result is asked for
        print(f"Newest checkpoint {job.result()}")
        return
    print(f"Job {job.job_id}: run folder {folder.replace(submission.JOB_ID, job.job_id)}")
    print(f"  log     tail -F {submission.log_path(job)}")
    print(f"  cancel  {submission.cancel_command(job)}", flush=True)
    if watch:
        newest = submission.follow(job, lambda text: print(text, end="", flush=True))
        print(f"Job {job.job_id} ended; newest checkpoint {newest}")
