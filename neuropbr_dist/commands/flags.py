"""Words that several commands have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from neuropbr_dist.config.overrides import FIELD_FLAGS, INTEGER_FLAGS, Overrides
from neuropbr_dist.config.presets import PRESETS
from neuropbr_dist.errors import UserError


def new_parser(description: str, prog: str | None) -> argparse.ArgumentParser:
    """Return a parser that takes flags by their whole names only."""
    return argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add the flag that `entry` reads."""
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")


def named(text: str) -> str:
    """Return a flag's value that may not be empty.

    A shell variable that isn't set would mean this folder, or the default.
    """
    if not text:
        raise argparse.ArgumentTypeError("empty text")
    return text


def add_fields(parser: argparse._ActionsContainer) -> None:
    """Add `--config`, `--set` and the flags of single fields: what a run is, in the words of `neuropbr train`."""
    parser.add_argument(
        "--config",
        type=named,
        help=f"preset ({', '.join(PRESETS)}), .yaml file or .py file with get_config()",
    )
    for flag, name in FIELD_FLAGS.items():
        parser.add_argument(flag, metavar="VALUE", help=name)
    for flag, name in INTEGER_FLAGS.items():
        parser.add_argument(flag, type=int, metavar="N", help=name)
    parser.add_argument("--use-dirty", action="store_true", help="legacy: --render-curriculum 2")
    add_set(parser, "PART.FIELD=VALUE", "any field; repeatable")
    # The deepspeed launcher hands it to every script.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def add_set(parser: argparse._ActionsContainer, metavar: str, text: str) -> None:
    """Add `--set`, which names fields of a configuration."""
    parser.add_argument("--set", action="append", default=[], metavar=metavar, help=text)


def assigned(assignments: Sequence[str], allowed: str) -> Overrides:
    """Return the fields that `--set` names where only some may be: those whose names begin with `allowed`.

    Raises:
        UserError: another field.
    """
    overrides = Overrides(assignments=tuple(assignments))
    for name in overrides.named():
        if not name.startswith(allowed):
            raise UserError(
                f"--set {name}: the checkpoint says it; allowed here: {allowed}{'*' * allowed.endswith('.')}"
            )
    return overrides


def overrides_of(args: argparse.Namespace) -> Overrides:
    """Return what the parsed arguments say of fields."""
    given = {flag: getattr(args, flag.lstrip("-").replace("-", "_")) for flag in FIELD_FLAGS | INTEGER_FLAGS}
    return Overrides(
        config=args.config,
        flags={flag: value for flag, value in given.items() if value is not None},
        use_dirty=args.use_dirty,
        assignments=tuple(args.set),
    )
