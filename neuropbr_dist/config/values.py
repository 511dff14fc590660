"""Reading and setting fields by dotted name, checked against the dataclasses' types and ranges."""

from __future__ import annotations

import dataclasses
from typing import Any

from neuropbr_dist.config.fields import describe, field_types, fit, item_class, types_of
from neuropbr_dist.config.schema import TrainConfig
from neuropbr_dist.config.text import parse_yaml, shown
from neuropbr_dist.errors import UserError


def set_field(cfg: TrainConfig, name: str, value: Any, where: str) -> None:
    """Set `part.field`.

    Raises:
        UserError: unknown name (nearest ones are named), or a value of another type or outside of its range.
    """
    part_name, _, field = name.partition(".")
    parts = [f.name for f in dataclasses.fields(cfg)]
    if part_name not in parts or not field:
        raise UserError(
            f"{where}: unknown key {shown(name)}; keys are PART.FIELD with PART one of {', '.join(parts)}"
        )
    part = getattr(cfg, part_name)
    kinds = field_types(part)
    if field not in kinds:
        raise UserError(f"{where}: unknown key {shown(name)}{_suggest(field, kinds, part_name)}")
    setattr(part, field, fitted(name, value, kinds[field], where))


def fit_fields(cfg: TrainConfig, where: str) -> TrainConfig:
    """Check values that were set in Python against the same types and ranges as those from text. In place.

    Raises:
        UserError: names the first field whose value doesn't fit.
    """
    for part_name, fields in to_dict(cfg).items():
        part = getattr(cfg, part_name)
        kinds = field_types(part)
        for field, value in fields.items():
            setattr(part, field, fitted(f"{part_name}.{field}", value, kinds[field], where))
    return cfg


def fitted(name: str, value: Any, kind: Any, where: str) -> Any:
    """Return `value` as `kind`; the one message of a value that no field of its type may have."""
    item = item_class(kind)
    if item is not None and isinstance(value, list | tuple):
        word = item.__name__.lower()
        return [_made(item, f"{name}, {word} {i}", each, where) for i, each in enumerate(value, 1)]
    try:
        return fit(value, kind)
    except TypeError:
        raise UserError(f"{where}: {name} = {shown(value)}; allowed: {describe(kind)}") from None


def _made(item: Any, name: str, value: Any, where: str) -> Any:
    """Return an `item` of a map's fields, each of its type."""
    kinds, given = types_of(item), vars_of(value)
    if not isinstance(given, dict):
        raise UserError(f"{where}: {name} = {shown(value)}; allowed: {describe(item)}")
    for field in given:
        if field not in kinds:
            raise UserError(f"{where}: {name}: unknown key {shown(field)}{_suggest(str(field), kinds)}")
    for field in dataclasses.fields(item):
        if field.default is dataclasses.MISSING and field.name not in given:
            raise UserError(f"{where}: {name}: {field.name} is missing")
    return item(
        **{field: fitted(f"{name}: {field}", each, kinds[field], where) for field, each in given.items()}
    )


def vars_of(value: Any) -> Any:
    """Return a dataclass's fields as a map; anything else as it is."""
    known = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if known else value


def _suggest(field: str, kinds: dict[str, Any], part: str = "") -> str:
    import difflib

    close = difflib.get_close_matches(field, kinds, n=3)
    if close:
        return "; did you mean " + ", ".join(f"{part}.{c}" if part else c for c in close) + "?"
    return f"; {part + ' has' if part else 'there are'}: {', '.join(kinds)}"


def set_text(cfg: TrainConfig, assignment: str) -> None:
    """Apply one `--set part.field=value`; the value is read as YAML."""
    name, eq, text = assignment.partition("=")
    if not eq:
        raise UserError(f"--set {assignment!r}: expected part.field=value")
    set_field(cfg, name.strip(), parse_yaml(text, f"--set {assignment!r}: the value"), "--set")


def update(cfg: TrainConfig, tree: Any, where: str) -> None:
    """Apply a nested mapping as a YAML file holds it."""
    if not isinstance(tree, dict):
        raise UserError(f"{where}: expected a mapping of parts, found {type(tree).__name__}")
    for part, fields in tree.items():
        if not isinstance(fields, dict):
            raise UserError(f"{where}: {shown(part)}: expected a mapping of fields, found {shown(fields)}")
        for field, value in fields.items():
            set_field(cfg, f"{part}.{field}", value, where)


def to_dict(cfg: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return part -> field -> value, of plain types only."""
    return dataclasses.asdict(cfg)


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return dotted name -> (old, new) of every field that differs."""
    a, b = to_dict(old), to_dict(new)
    return {
        f"{part}.{field}": (a[part][field], b[part][field])
        for part in a
        for field in a[part]
        if a[part][field] != b[part][field]
    }
