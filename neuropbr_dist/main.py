"""Entry points of the launch scripts: parse, call one function, turn a UserError into one line."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import wraps

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
