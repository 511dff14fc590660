"""Rows of `tests.support.parity` held against the plain loop, and the table of how far apart they are."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from tests.support.distributed import run
from tests.support.parity import Case, Row, differences
from tests.support.plain_loop import train_plain

TITLE = "engines against the plain loop: largest relative difference"
TRAIN = "tests.support.parity:train_row"


def label(pair: tuple[Case, Row]) -> str:
    """The row, and what its case has beside the basic one."""
    case, row = pair
    notes = ["frozen ResNet" if case.resnet else "frozen encoder"] * case.frozen_encoder
    notes += ["rendered online" if case.rendered else "on the plane"] * case.plane
    notes += ["spectral norms, views judged"] * case.judges_views
    notes += ["features matched"] * (case.w_features > 0)
    notes += ["rendering loss"] * (case.w_render > 0)
    notes += [f"{case.d_steps} D steps a G step"] * (case.d_steps > 1)
    notes += ["real losses"] * (not case.smooth) + [f"float64, {case.steps} steps"] * case.double
    notes += [f"{case.norm} norm"] * (case.norm != "group")
    notes += [f"batch {case.batch}"] * (case.batch % row.world > 0)
    return ", ".join([str(row), *notes])


@cache
def reference(case: Case) -> dict[str, Any]:
    return train_plain(case)


def trained(case: Case, row: Row, target: str = TRAIN) -> dict[str, Any]:
    """What `target` ("module:function") gives of them, on the row's ranks."""
    if row.engine == "single":
        module, _, function = target.partition(":")
        return getattr(import_module(module), function)(case, row)
    return run(row.world, target, case=case, row=row)[0]


def check(summary: dict[str, list[str]], pair: tuple[Case, Row], bound: float, target: str = TRAIN) -> None:
    """Train, add a line to the table, hold it against the plain loop."""
    case, row = pair
    found = differences(trained(case, row, target), reference(case))
    worst = max(found, key=found.get)
    mark = "ok" if found[worst] <= bound else "OUT"
    line = f"{found[worst]:9.1e}  (bound {bound:.0e})  {mark:3}  {label(pair)}"
    summary.setdefault(TITLE, []).append(line)
    assert found[worst] <= bound, worst
