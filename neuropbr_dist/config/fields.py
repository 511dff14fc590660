"""The types of fields: what they allow, in words, and a value made to fit.

A range stands in the type, in the vocabulary of `annotated_types`: `Annotated[float, Interval(gt=0)]` is a number
above 0, `Annotated[list[int], Len(2)]` a list of two or more.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from functools import cache
from typing import Annotated, Any, Literal, Union

from annotated_types import Interval, Len

from neuropbr_dist.config import schema


def field_types(part: Any) -> dict[str, Any]:
    """Return field -> type, its range included, of one part of a configuration."""
    kind: Any = type(part)
    return types_of(kind)


@cache
def types_of(kind: Any) -> dict[str, Any]:
    """Return field -> type, its range included, of a dataclass of the configuration."""
    return typing.get_type_hints(kind, vars(schema), include_extras=True)


def item_class(kind: Any) -> Any:
    """Return the dataclass that a list's elements are of, which text writes as a map; None for any other type."""
    base, _ = unwrap(kind)
    args = typing.get_args(base)
    return args[0] if typing.get_origin(base) is list and dataclasses.is_dataclass(args[0]) else None


def unwrap(kind: Any) -> tuple[Any, list[Interval | Len]]:
    """Split `Annotated[base, *limits]` into the two; any other type has no limits."""
    if typing.get_origin(kind) is not Annotated:
        return kind, []
    base, *limits = typing.get_args(kind)
    return base, limits


def describe(kind: Any) -> str:
    """Say a type as a person would: `int, 1 or more`, `text or none`, `list of float, 3 of them, each above 0`."""
    base, limits = unwrap(kind)
    origin, args = typing.get_origin(base), typing.get_args(base)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        arms = [describe(arm) for arm in args]
        return (", or " if any("," in arm for arm in arms) else " or ").join(arms)
    said = [phrase(limit) for limit in limits]
    if origin in (list, dict):
        item, each = unwrap(args[-1])
        name = (
            f"list of {describe(item)}"
            if origin is list
            else f"map of {describe(args[0])} to {describe(item)}"
        )
        said += [f"each {phrase(limit)}" for limit in each]
    elif dataclasses.is_dataclass(base):
        name = f"map of {', '.join(f.name for f in dataclasses.fields(base))}"
    elif base is str:
        return "non-empty text" if limits else "text"
    else:
        name = {bool: "true or false", type(None): "none"}.get(base, base.__name__)
    return ", ".join([name, *said])


def phrase(limit: Interval | Len) -> str:
    """Say a limit: `1 or more`, `above 0, below 1`, `from 0 to below 1`; of a length `2 or more of them`, `3 of them`."""
    if isinstance(limit, Len):
        return f"{limit.min_length}{'' if limit.max_length else ' or more'} of them"
    above = limit.gt is not None
    if limit.lt is None and limit.le is None:
        return f"above {limit.gt}" if above else f"{limit.ge} or more"
    upper = f"below {limit.lt}" if limit.le is None else f"{'at most ' if above else ''}{limit.le}"
    return f"above {limit.gt}, {upper}" if above else f"from {limit.ge} to {upper}"


def allows(limit: Interval | Len, value: Any) -> bool:
    """Return whether a value of the right type keeps to the limit."""
    if isinstance(limit, Len):
        return limit.min_length <= len(value) <= (limit.max_length or math.inf)
    return (
        (limit.ge is None or value >= limit.ge)
        and (limit.gt is None or value > limit.gt)
        and (limit.le is None or value <= limit.le)
        and (limit.lt is None or value < limit.lt)
    )


def fit(value: Any, kind: Any) -> Any:
    """Return `value` as `kind`, without loss.

    Raises:
        TypeError: it is of another type, or outside of the range.
    """
    base, limits = unwrap(kind)
    fitted = _fit_type(value, base)
    if not all(allows(limit, fitted) for limit in limits):
        raise TypeError
    return fitted


def _fit_type(value: Any, kind: Any) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        for arm in args:
            try:
                return fit(value, arm)
            except TypeError:
                continue
    elif origin is Literal:
        if isinstance(value, bool) and (word := "on" if value else "off") in args:
            return word  # YAML reads a bare on as true, off as false
        if any(value == a and type(value) is type(a) for a in args):
            return value
    elif origin is list:
        if isinstance(value, list | tuple):
            return [fit(v, args[0]) for v in value]
    elif origin is dict:
        if isinstance(value, dict):
            return {fit(k, args[0]): fit(v, args[1]) for k, v in value.items()}
    elif kind is type(None):
        if value is None:
            return None
    elif kind is float:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return _finite(value)
    elif type(value) is kind and _can_be_kept(value):
        return value
    raise TypeError


def _can_be_kept(value: Any) -> bool:
    """Return whether a whole number is one that others count with too, and a text one that a file can be named by."""
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
    return not isinstance(value, int) or abs(value) < 2**63


def _finite(value: float | str) -> float:
    try:
        number = float(value)  # YAML reads 1e-4 as text
    except (ValueError, OverflowError):
        raise TypeError from None
    if not math.isfinite(number):
        raise TypeError
    return number
