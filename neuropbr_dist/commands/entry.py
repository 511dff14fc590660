"""End of a command: a `UserError` as one line, Ctrl-C, a reader that has gone, other ranks that must end too."""

from __future__ import annotations

import errno
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
from typing import NoReturn, Protocol

from neuropbr_dist.errors import UserError
from neuropbr_dist.logs import to_console

# Other ranks hold their message back so long: if rank 0 met the same fault, its launcher ends them first.
RANK_0_FIRST_S = 3.0
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
READER_GONE = 128 + signal.SIGPIPE


class Run(Protocol):
    """The call of a command, or of a table of commands."""

    def __call__(self, argv: Sequence[str] | None = None, prog: str | None = None) -> None:
        """Parse `argv` and do what it says.

        Args:
            argv: the words after the command's name; None: those of this process.
            prog: what a user types to get here, for usage lines; None: this process's script.
        """


def entry(function: Callable[[Sequence[str] | None, str | None], None]) -> Run:
    """Decorate a command's call so that it ends as a program should.

    A `UserError` becomes one line on stderr and exit code 2, and so does a file that the system refuses where nobody
    has said it better; Ctrl-C one word and 130; a traceback only under `--debug`. Where nobody reads the output any
    more (`| head`), the exit code is 141, without a word.
    """

    @wraps(function)
    def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
        quiet_libraries()
        to_console()
        for stream in text_streams():
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding hasn't
        try:
            function(argv, prog)
            flush()
        except SystemExit:
            flush()
            raise
        except BrokenPipeError:
            if not reader_gone():
                raise
            os._exit(READER_GONE)
        except (KeyboardInterrupt, MemoryError, OSError, UserError) as error:
            if "--debug" in (sys.argv if argv is None else argv):
                raise
            if isinstance(error, KeyboardInterrupt):
                end("interrupted", 128 + signal.SIGINT)
            if isinstance(error, OSError) and not of_a_disk(error):
                raise
            rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
            if rank != "0":
                signal.signal(signal.SIGTERM, lambda *_: os._exit(2))  # so srun's own exit code is 2 as well
                time.sleep(RANK_0_FIRST_S)
                end(f"rank {rank}: error: {told(error)}", 2)
            end(f"error: {told(error)}", 2)

    return run


def of_a_disk(error: OSError) -> bool:
    """Return whether the system refused a file: it names one, or says what only disks say."""
    return error.filename is not None or error.errno in DISK_ERRORS


def told(error: Exception) -> str:
    """Return what an error is to a person, on one line."""
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)
    return str(error)


def text_streams() -> list[io.TextIOWrapper]:
    """Return stdout and stderr, where they are files: a closed one is None, a notebook's is something else."""
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]


def flush() -> None:
    """Write what is left to write: at the interpreter's end a closed pipe would be a traceback."""
    try:
        for stream in text_streams():
            stream.flush()
    except BrokenPipeError:
        os._exit(READER_GONE)


def reader_gone() -> bool:
    """Return whether stdout or stderr is a pipe that nobody reads; a worker's broken pipe is another matter."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def end(message: str, code: int) -> NoReturn:
    """Say why and end at once: other threads and ranks may wait in a collective for ever."""
    with suppress(OSError):  # a reader that has gone, a closed terminal
        print(message, file=sys.stderr, flush=True)
        for stream in text_streams():
            stream.flush()
    os._exit(code)


def quiet_libraries() -> None:
    """Hide deprecations inside torch and DeepSpeed: they are not the user's business."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.|deepspeed\.")
    # DDP's of a 1x1 convolution's gradient, which differs in strides that say nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
