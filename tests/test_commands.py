"""`neuropbr`: the table of commands, what they are called, and what it costs to ask one."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from neuropbr_dist.commands import COMMANDS, data, main
from tests.support.distributed import ROOT
from tests.support.forked import call

NAMES = [
    words
    for name in COMMANDS.commands
    for words in ([[name, part] for part in data.COMMANDS.commands] if name == "data" else [[name]])
]
"""The words that call each command."""
HELP = f"""
import contextlib, io, sys
from neuropbr_dist.commands import main
for words in {NAMES!r}:
    for more, code in (["--help"], 0), (["--no-such-word"], 2):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                main([*words, *more], "neuropbr")
            except SystemExit as stopped:
                assert stopped.code == code, (words, more, stopped.code)
print(*{{"torch", "deepspeed", "submitit", "numpy", "PIL"}} & sys.modules.keys())
"""


def test_help_and_wrong_words_import_nothing_that_takes_seconds():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("words", NAMES, ids=" ".join)
def test_a_command_is_called_by_its_name(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"], "neuropbr")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: neuropbr {' '.join(words)} [-h]")


@pytest.mark.parametrize(
    "words", [[], ["trian"], ["--debug", "train"], ["data"], ["data", "pak"]], ids=" ".join
)
def test_a_name_that_is_none_is_refused_with_those_that_are(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words, "neuropbr")
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    table = data.COMMANDS if words[:1] == ["data"] else COMMANDS
    assert f"{{{','.join(table.commands)}}}" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "error: a/b: Permission denied\n"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "Traceback"),
    ],
)
def test_a_file_that_the_system_refuses_is_one_line(error, said):
    """Wherever nobody has said it better."""
    program = (
        "from neuropbr_dist.commands.entry import entry\n"
        "@entry\n"
        f"def run(argv, prog): raise {type(error).__name__}{(*error.args, *filter(None, [error.filename]))}\n"
        "run()\n"
    )
    done = call(program)
    assert done.code == (1 if said == "Traceback" else 2) and said in done.err


def test_a_launcher_s_rank_may_come_before_the_name():
    """As `deepspeed --module neuropbr_dist train` calls it."""
    command = [sys.executable, "-m", "neuropbr_dist", "--local_rank=0", "train", "--epochs", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2 and done.stderr.startswith(
        "error: --epochs: training.epochs = 0; allowed: int, 1 or more"
    ), done
