"""`neuropbr submit`: a training run through submitit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neuropbr_dist.commands import train
from neuropbr_dist.commands.entry import entry, quiet_libraries
from neuropbr_dist.commands.flags import add_debug, new_parser
from neuropbr_dist.config import TrainConfig
from neuropbr_dist.logs import to_console
from neuropbr_dist.training.start import Start

if TYPE_CHECKING:
    from neuropbr_dist.cluster import StopReason

PROJECT = Path(__file__).resolve().parents[2]


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr submit`; words that it doesn't know are those of `neuropbr train`."""
    p = new_parser("Submit a training run through submitit. All other words go to neuropbr train.", prog)
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
    p.add_argument("--sbatch", type=option, action="append", default=[], metavar="NAME=VALUE",
                   help="sbatch option: partition=gpu, account=x, qos=y, ...; repeatable")  # fmt: skip
    p.add_argument("--dry-run", action="store_true", help="print the batch file, submit nothing")
    p.add_argument(
        "--follow", action="store_true", help="show rank 0's output and the job's state until the end"
    )
    p.add_argument("--doctor", action="store_true", help="submit nothing: neuropbr doctor")
    add_debug(p)
    return p


def option(text: str) -> tuple[str, str]:
    """Return name and value of `NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: NAME=VALUE")
    return name, value


@dataclass(frozen=True)
class Training:
    """One rank's training inside a submitted job, as submitit pickles it."""

    start: Start

    def __call__(self, folder: Path, restarted: bool) -> StopReason | None:
        """Train in `folder`; return why it stopped, if it did. A `UserError` is left to submitit, which hands it back.

        Args:
            restarted: the folder holds a save of an earlier start of this job: go on from that.
        """
        from neuropbr_dist.training.run import train as train_run

        quiet_libraries()
        to_console()
        start = replace(self.start, overrides=self.start.overrides.with_flag("--checkpoint-dir", str(folder)))
        if restarted:  # --overwrite and --resume PATH were for the first start
            start = replace(start, resume="auto", overwrite=False)
        elif not start.overwrite:
            start = replace(start, resume=start.resume or "auto")
        return train_run(start.overrides.configuration(), start)


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Submit a run, show its batch file, or compare nodes (`--doctor`, exit code 1 if they differ)."""
    args, train_argv = parser(prog).parse_known_args(argv)
    start = train.start_of(train.parser(prog).parse_args(train_argv))
    cfg = start.overrides.configuration()  # a wrong word or field fails here, not in the queue
    if args.doctor:
        from neuropbr_dist.training.doctor import doctor

        sys.exit(0 if doctor(cfg) else 1)
    from neuropbr_dist.cluster import submit as submission

    folder = cfg.training.checkpoint_dir
    if folder == TrainConfig().training.checkpoint_dir:  # each submission is a run of its own
        folder = f"{folder}/{args.name}-{submission.JOB_ID}"
    request = submission.Request(
        executor=args.executor, name=args.name, log_dir=args.log_dir, nodes=args.nodes,
        gpus_per_node=args.gpus_per_node, tasks_per_node=args.tasks_per_node, cpus_per_task=args.cpus_per_task,
        mem_gb=args.mem_gb, minutes=args.minutes, warning_seconds=args.warning_seconds,
        max_timeouts=args.max_timeouts, python=args.python, setup=args.setup,
        sbatch=dict(args.sbatch),
    )  # fmt: skip
    executor = submission.make_executor(request, PROJECT)
    if args.dry_run:
        print(submission.sbatch_text(executor), end="")
        return
    job = submission.send(executor, submission.Job(Training(start), folder))
    if args.executor == "debug":  # nothing runs before its result is asked for
        print(f"Newest checkpoint {job.result()}")
        return
    print(f"Job {job.job_id}: run folder {folder.replace(submission.JOB_ID, job.job_id)}")
    print(f"  log     tail -F {submission.log_path(job)}")
    print(f"  cancel  {submission.cancel_command(job)}", flush=True)
    if args.follow:
        newest = submission.follow(job)
        print(f"Job {job.job_id} ended; newest checkpoint {newest}")
