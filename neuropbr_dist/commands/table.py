"""A table of commands: a name, the module that has its parser and its call, and a line about it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType


class Table:
    """Commands by name, each in a module of its own, which isn't imported before it is called.

    Such a module has `parser(prog)` and `run(argv, prog)` (see `entry.Run`), or it has a `Table` of its own as
    `COMMANDS`, and `run`.

    Args:
        description: for `--help`.
        commands: name to module and one line of help.
    """

    def __init__(self, description: str, commands: Mapping[str, tuple[str, str]]) -> None:
        self.description, self.commands = description, commands

    def parser(self, prog: str | None = None) -> argparse.ArgumentParser:
        """Return the parser of the first word: it lists the commands, and refuses a name that isn't one."""
        p = argparse.ArgumentParser(prog=prog, description=self.description, allow_abbrev=False)
        names = p.add_subparsers(dest="command", required=True)
        for name, (_, text) in self.commands.items():
            names.add_parser(name, help=text, add_help=False)
        return p

    def find(self, argv: Sequence[str], prog: str | None = None) -> tuple[ModuleType, list[str], str]:
        """Return the module of the command whose name `argv` begins with, the arguments after it, and its `prog`.

        Raises:
            SystemExit: `argv` begins with `--help`, or with no command's name.
        """
        prog = prog or Path(sys.argv[0]).name
        name = self.parser(prog).parse_args(argv[:1]).command
        module, prog, rest = import_module(self.commands[name][0]), f"{prog} {name}", list(argv[1:])
        return module.COMMANDS.find(rest, prog) if hasattr(module, "COMMANDS") else (module, rest, prog)

    def run(self, argv: Sequence[str] | None = None, prog: str | None = None) -> None:
        """Call the command whose name `argv` begins with; None: this process's arguments."""
        module, rest, prog = self.find(sys.argv[1:] if argv is None else argv, prog)
        module.run(rest, prog)
