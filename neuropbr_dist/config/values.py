"""Reading and setting fields by dotted name, checked against the dataclasses' types."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

import yaml

from neuropbr_dist.config import schema
from neuropbr_dist.config.schema import TrainConfig
from neuropbr_dist.errors import UserError


def field_types(part: Any) -> dict[str, Any]:
    """Field -> type of one part of a configuration."""
    return typing.get_type_hints(type(part), vars(schema))


def describe(kind: Any) -> str:
    """A type as a person would say it: `one of resnet, unet`, `list of int`, `int or none`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else describe(a) for a in args)
    if origin is list:
        return f"list of {describe(args[0])}"
    if origin is dict:
        return f"map of {describe(args[0])} to {describe(args[1])}"
    return {str: "text", bool: "true or false"}.get(kind, getattr(kind, "__name__", str(kind)))


def fit(value: Any, kind: Any) -> Any:
    """`value` as `kind`, without loss.

    Raises:
        TypeError: it can't be.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for arm in args:
            try:
                return fit(value, arm)
            except TypeError:
                continue
    elif origin is typing.Literal:
        if value is False and "off" in args:  # YAML reads a bare off as false
            return "off"
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
    elif type(value) is kind:
        return value
    raise TypeError


def _finite(value: float | str) -> float:
    try:
        number = float(value)  # YAML reads 1e-4 as text
    except ValueError:
        raise TypeError from None
    if not math.isfinite(number):
        raise TypeError
    return number


def set_field(cfg: TrainConfig, name: str, value: Any, where: str) -> None:
    """Set `part.field`.

    Raises:
        UserError: unknown name (nearest ones are named) or a value of another type.
    """
    part_name, _, field = name.partition(".")
    parts = [f.name for f in dataclasses.fields(cfg)]
    if part_name not in parts or not field:
        raise UserError(
            f"{where}: unknown key {name!r}; keys are PART.FIELD with PART one of {', '.join(parts)}"
        )
    part = getattr(cfg, part_name)
    kinds = field_types(part)
    if field not in kinds:
        raise UserError(f"{where}: unknown key {name!r}{_suggest(field, kinds, part_name)}")
    try:
        setattr(part, field, fit(value, kinds[field]))
    except TypeError:
        raise UserError(f"{where}: {name} = {value!r}; allowed: {describe(kinds[field])}") from None


def _suggest(field: str, kinds: dict[str, Any], part: str) -> str:
    import difflib

    close = difflib.get_close_matches(field, kinds, n=3)
    if close:
        return "; did you mean " + ", ".join(f"{part}.{c}" for c in close) + "?"
    return f"; {part} has: {', '.join(kinds)}"


def set_text(cfg: TrainConfig, assignment: str) -> None:
    """Apply one `--set part.field=value`; the value is read as YAML."""
    name, eq, text = assignment.partition("=")
    if not eq:
        raise UserError(f"--set {assignment!r}: expected part.field=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"--set {assignment!r}: the value is not YAML ({' '.join(str(error).split())})"
        ) from None
    set_field(cfg, name.strip(), value, "--set")


def update(cfg: TrainConfig, tree: Any, where: str) -> None:
    """Apply a nested mapping as a YAML file holds it."""
    if not isinstance(tree, dict):
        raise UserError(f"{where}: expected a mapping of parts, found {type(tree).__name__}")
    for part, fields in tree.items():
        if not isinstance(fields, dict):
            raise UserError(f"{where}: {part}: expected a mapping of fields, found {fields!r}")
        for field, value in fields.items():
            set_field(cfg, f"{part}.{field}", value, where)


def to_dict(cfg: TrainConfig) -> dict[str, dict[str, Any]]:
    """Part -> field -> value, of plain types only."""
    return dataclasses.asdict(cfg)


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (old, new) of every field that differs."""
    a, b = to_dict(old), to_dict(new)
    return {
        f"{part}.{field}": (a[part][field], b[part][field])
        for part in a
        for field in a[part]
        if a[part][field] != b[part][field]
    }
