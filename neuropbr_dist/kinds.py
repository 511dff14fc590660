"""Checks that values that come out of a JSON file are of the kinds that they have to be."""

from __future__ import annotations

import math
from types import GenericAlias, UnionType
from typing import Any, get_args, get_origin


def fits(value: Any, kind: Any) -> bool:
    """Return whether a JSON value is of a kind.

    Args:
        kind: `str`, `bool`, `dict` or `None`'s type; `int`, a whole number of 64 bits (`true` is none); `float`, a
            finite number; `list[kind]`; `dict[str, kind]`; `(kind, kind)`, a list of exactly these;
            `{name: kind}`, an object with exactly these names; or `kind | kind`.
    """
    if isinstance(kind, dict):
        return (
            isinstance(value, dict)
            and value.keys() == kind.keys()
            and all(fits(value[name], kind[name]) for name in kind)
        )
    if isinstance(kind, tuple):
        return isinstance(value, list) and len(value) == len(kind) and all(map(fits, value, kind))
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if isinstance(kind, GenericAlias):
        inside = value.values() if isinstance(value, dict) else value
        return isinstance(value, get_origin(kind)) and all(fits(one, get_args(kind)[-1]) for one in inside)
    if kind is float and type(value) is float:
        return math.isfinite(value)
    if kind in (int, float):
        return type(value) is int and -(2**63) <= value < 2**63
    return type(value) is kind
