"""The commands of README.md and docs/*.md, and which of them can run here.

A command is a line of a ```bash block (continuations joined; a block with loops or branches is one command), or
inline code that begins with a program's name and an argument. What isn't run as it stands has a mark: of a block in
its fence's info string, "```bash gpu", of inline code by how it begins (`INLINE`).

    gpu      needs GPUs           checked, not run
    slurm    needs a cluster      checked, not run
    install  changes the machine  checked, not run
    long     takes minutes        launch/train.py and submit.py: run shortened; others checked

Checked: the scripts, files and make targets that it names are there, and our scripts' own parsers take its words.
Python blocks run as well; one that begins with `# NAME.py` is written to that file instead.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import cli as benchmarks
from neuropbr_dist.commands import COMMANDS, submit
from neuropbr_dist.commands.flags import overrides_of
from neuropbr_dist.commands.train import config_of

MARKS = ("gpu", "slurm", "install", "long", None)
PROGRAMS = ("python", "torchrun", "deepspeed", "sbatch", "scancel", "make", "pip", "tensorboard", "neuropbr")
INLINE = {
    "make ": "long", "pip ": "install", "sbatch ": "slurm", "scancel ": "slurm", "python launch/submit.py ": "slurm",
    "deepspeed ": "gpu", "torchrun ": "gpu", "python launch/benchmark.py ": "long", "python launch/train.py ": "long",
    "python launch/data.py register ": "long", "python launch/data.py generate ": "long",
    "python launch/report.py ": "long",
}  # fmt: skip
"""How inline code begins, and its mark."""
SHORT = [
    "--set", "data.builtin_count=4", "--set", "data.image_size=32",
    "--set", "training.global_batch_size=2", "--set", "training.checkpoint_dir=shortened",
]  # fmt: skip
"""Appended to a long training run, with the demo preset where none is named."""


class Example(NamedTuple):
    """One command, or one Python block."""

    place: str
    """File and line."""
    text: str
    mark: str | None
    python: bool = False

    def __str__(self) -> str:
        return f"{self.place} {self.text.splitlines()[0][:60]}"


def examples(page: Path) -> list[Example]:
    """Everything on a page that a reader would run, in order."""
    return list(_examples(page))


def _examples(page: Path) -> Iterator[Example]:
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    for number, line in lines:
        place = f"{page.name}:{number}"
        if line.startswith("```"):
            language, _, mark = line.removeprefix("```").partition(" ")
            yield from _of_block(place, language, _block(lines), mark or None)
            continue
        for code in re.findall(r"`([^`]+)`", line):
            if code.split()[0] in PROGRAMS and len(code.split()) > 1:
                yield Example(
                    place, code, next((m for start, m in INLINE.items() if code.startswith(start)), None)
                )


def _block(lines: Iterator[tuple[int, str]]) -> list[str]:
    block = []
    for _, line in lines:
        if line.startswith("```"):
            break
        block.append(line)
    return block


def _of_block(place: str, language: str, block: list[str], mark: str | None) -> Iterator[Example]:
    if language == "python":
        yield Example(place, "\n".join(block), mark, python=True)
    if language in ("bash", "sh", "console"):
        text = re.sub(r"\\\n\s*", "", "\n".join(block))
        compound = re.search(r"(?m)^\s*(for|while|until|if|case)\b", text)
        for command in [text] if compound else text.splitlines():
            if shlex.split(command, comments=True):
                yield Example(place, command, mark)


# -- what is checked of those that don't run -------------------------------------------------


def faults(command: str, root: Path) -> list[str]:
    """What a reader would stumble over: absent scripts, files and make targets, words that no parser takes."""
    return [fault for words in simple_commands(command) for fault in _faults(words, root)]


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each command between a shell's operators, its variables replaced by a word."""
    text = re.sub(r"(?m)(^|\s)#.*$", "", text)
    text = re.sub(r"\$\(\(.*?\)\)", "0", text).replace("$(", " ; ")
    lexer = shlex.shlex(text.replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    for word in [*lexer, ";"]:
        if re.fullmatch(r"[();<>|&]+", word):
            yield words
            words = []
        elif word not in ("$@", "…"):
            words.append(re.sub(r"\$(\w+|\{.*?\})", "X", word))


def _faults(words: list[str], root: Path) -> list[str]:
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)
    if words and words[0] == "make":
        targets = re.findall(r"(?m)^([\w-]+):", (root / "Makefile").read_text())
        return [f"make {word}: no such target" for word in words[1:] if word not in targets]
    found = []
    for i, word in enumerate(words):
        if word in ("neuropbr", "neuropbr_dist") and i + 1 < len(words):  # the command, or what -m starts
            found += refused(words[i + 1], words[i + 2 :])
        elif re.match(r"(launch|slurm|ds_configs|tests|docs)/", word) and not (root / word).exists():
            found.append(f"{word}: no such file")
        elif (name := OURS.get(word)) is not None:
            found += refused(name, words[i + 1 :])
    return found


OURS = {f"launch/{name}.py": name for name in [*COMMANDS.commands, "benchmark"]} | {
    "slurm/train.sbatch": "train", "slurm/elastic.sbatch": "train", "slurm/infer.sbatch": "infer",
}  # fmt: skip


def refused(script: str, words: list[str]) -> list[str]:
    """Why a script's own parser doesn't take the words; [] if it does."""
    table = benchmarks.COMMANDS if script == "benchmark" else COMMANDS
    try:
        if script == "submit":
            config_of(submit.parser().parse_known_args(words)[1])
            return []
        module, rest, prog = table.find(words if script == "benchmark" else [script, *words])
        args = module.parser(prog).parse_args(rest)
        if hasattr(args, "config"):
            overrides_of(args).configuration()
    except SystemExit as stopped:  # argparse has printed why, or help
        return [f"{script}: its parser refuses {shlex.join(words)}"] if stopped.code else []
    return []


def shortened(command: str) -> str | None:
    """A long training run as one step on four tiny materials; None for what can't be cut."""
    words = shlex.split(command, comments=True)
    if not {"launch/train.py", "launch/submit.py"} & set(words):
        return None
    preset = [] if "--config" in words else ["--config", "demo"]
    end = [] if "--debug" in words else ["--stop-after-steps", "1"]
    return shlex.join([*words, *preset, *end, *SHORT])
