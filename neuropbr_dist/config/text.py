"""Reading what a person, or a stranger, wrote: files that are named on the command line, and YAML."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import yaml

from neuropbr_dist import files
from neuropbr_dist.errors import UserError

MOST_VALUES = 10_000
"""Most values in a YAML text, each alias counted as often as it is used: a few hundred bytes can stand for billions."""
WRONG_VALUE = (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, RecursionError)
"""Errors that PyYAML raises on a text that isn't YAML, on a value that isn't what its tag says, and on a deep one."""


def read_text(path: str | Path, flag: str) -> str:
    """Return the whole file; `flag` is what named it.

    Raises:
        UserError: no such file, no right to read it, no regular file, or not UTF-8.
    """
    try:
        return files.read_text(path)
    except UserError as error:
        raise UserError(f"{flag} {error}") from error


def parse_yaml(text: str, where: str) -> Any:
    """Return the value that a YAML text holds; no code runs and no alias makes it larger than it looks.

    Raises:
        UserError: not YAML, of more than `MOST_VALUES` values, or a key stands twice in a mapping.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if (count := _size(node, {})) > MOST_VALUES:
            raise UserError(f"{where}: {count:,} values; allowed: {MOST_VALUES:,}")
        return loader.construct_document(node)
    except WRONG_VALUE as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"{where}: not YAML: {said}") from None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for. Raises a ValueError for one that is inside itself, or a key twice."""
    if id(node) not in known:
        known[id(node)] = 0
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        inside = [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = [part for one in inside for part in (one if isinstance(one, tuple) else (one,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    if not known[id(node)]:
        raise ValueError("a value is inside itself")
    return known[id(node)]


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a key that stands twice: PyYAML takes the last one and drops what stands under the first."""
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if (key.tag, key.value) in seen:
            raise ValueError(f"{key.value!r} appears more than once (line {key.start_mark.line + 1})")
        seen.add((key.tag, key.value))


def shown(value: Any) -> str:
    """Return a value from outside as it stands in a message: never long."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return f"a very long {type(value).__name__}"
