"""The configuration reference, made of the dataclasses: `python -m neuropbr_dist.config.reference FILE`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from neuropbr_dist.config import schema
from neuropbr_dist.config.fields import describe, types_of
from neuropbr_dist.config.overrides import FIELD_FLAGS, INTEGER_FLAGS
from neuropbr_dist.config.presets import PRESETS
from neuropbr_dist.config.schema import Stage, TrainConfig
from neuropbr_dist.config.values import differences

COMMAND = "python -m neuropbr_dist.config.reference docs/configuration.md"
HEAD = f"""\
# Configuration

Made of `neuropbr_dist/config/schema.py` by `{COMMAND}`; don't edit it here.

`--config` takes a preset, a YAML file or a Python file. A field is set in a YAML file (`part:`, then `field: value`), in a Python file with `get_config()`, by
`--set part.field=value`, or by its own flag, which stands under its name here. Values outside their range and combinations that can't train are
refused at start, with the field's name, what was given and what is allowed.
"""


def reference() -> str:
    """Return the whole page, as Markdown."""
    parts = [(part.name, type(getattr(TrainConfig(), part.name))) for part in dataclasses.fields(TrainConfig)]
    return "\n".join(
        [HEAD, presets(), *(section(*part) for part in parts), section("A stage of training.stages", Stage)]
    )


def presets() -> str:
    """Return, as Markdown, what each preset is for, and what it changes."""
    lines = [
        "## Presets",
        "",
        "| preset | what it is | fields that differ from `guide`, whose values stand below |",
        "|---|---|---|",
    ]
    for name, make in PRESETS.items():
        changed = differences(TrainConfig(), make())
        fields = ", ".join(f"`{field}={text(new)}`" for field, (_, new) in changed.items())
        lines.append(f"| `{name}` | {cell(inspect.getdoc(make) or '')} | {fields or 'none'} |")
    return "\n".join([*lines, ""])


def section(name: str, part: Any) -> str:
    """Return one dataclass as a Markdown table.

    Args:
        name: of the part in a configuration, or the section's title.
    """
    kinds, meanings = types_of(part), docstrings(part.__name__)
    flags = {field: flag for flag, field in (FIELD_FLAGS | INTEGER_FLAGS).items()}
    lines = [
        f"## {name}", "", inspect.getdoc(part) or "", "",
        "| field | default | allowed | meaning |", "|---|---|---|---|",
    ]  # fmt: skip
    for field in dataclasses.fields(part):
        flag = flags.get(f"{name}.{field.name}")
        shown = f"`{field.name}`" + (f"<br>`{flag}`" if flag else "")
        value = "required" if default_of(field) is dataclasses.MISSING else f"`{text(default_of(field))}`"
        lines.append(
            f"| {shown} | {value} | {cell(describe(kinds[field.name]))} | {cell(meanings[field.name])} |"
        )
    return "\n".join([*lines, ""])


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return a field's default; `MISSING` where it has none."""
    make = field.default_factory
    return field.default if make is dataclasses.MISSING else make()


def docstrings(name: str) -> dict[str, str]:
    """Return field -> the docstring under it; Python keeps those in the source only."""
    tree = ast.parse(inspect.getsource(schema))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = {}
    for field, text_below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text_below, ast.Expr) and isinstance(text_below.value, ast.Constant), (
                field.target.id
            )
            found[field.target.id] = str(text_below.value.value)
    return found


def text(value: Any) -> str:
    """Return a value as one writes it after `--set part.field=`."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def cell(content: str) -> str:
    """Return `content` on one line, with no bar that would end the cell."""
    return " ".join(content.split()).replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
