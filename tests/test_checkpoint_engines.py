"""A run saved on any engine and world size goes on on any other as if it had never stopped.

Each row below is resumed on itself and on one row of another engine; `make test-full` takes the other pairs, and the
special cases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import parity
from tests.support.checkpoint_matrix import Case, resume, train_and_save
from tests.support.distributed import run
from tests.support.parity import Row, differences, networks
from tests.support.plain_loop import train_plain

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]

BOUND = 1e-5

ROWS = {
    "single": Row(engine="single", world=1),
    "DDP x2": Row(engine="ddp"),
    "FSDP x2": Row(engine="fsdp"),
    "FSDP x4": Row(engine="fsdp", world=4),
    "HSDP 2x2": Row(engine="fsdp", world=4, shard="node"),
    "ZeRO-1 x2": Row(engine="deepspeed", stage=1),
    "ZeRO-2 x2": Row(engine="deepspeed", stage=2),
    "ZeRO-3 x2": Row(engine="deepspeed", stage=3),
    "ZeRO-3 x4": Row(engine="deepspeed", stage=3, world=4),
    "ZeRO-2 x2 offload": Row(engine="deepspeed", stage=2, offload=True),
    "FSDP x2 offload": Row(engine="fsdp", offload=True),
}
OTHERS = {
    "ZeRO-0 x2": Row(engine="deepspeed", stage=0),
    "ZeRO-3 x2 offload": Row(engine="deepspeed", stage=3, offload=True),
    "ZeRO-3 x2 small kept": Row(engine="deepspeed", stage=3, persist=10_000),
}
ALL_ROWS = ROWS | OTHERS
NEXT = 4
"""Rows further down that a row is resumed on: never the same engine or stage."""

BASIC = Case()
BEFORE_GAN = Case(gan_from=3)
FROZEN = Case(frozen_encoder=True)
BATCH = Case(norm="batch")
SYNC_BATCH = Case(norm="sync_batch", double=True)  # of few values: float32 is off by 1.3e-5 between worlds
BF16 = Case(bf16=True)
EMA = Case(ema_decay=0.7)
STAGES = Case(then=parity.Case(steps=4, batch=6, side=32))
PLANE = Case(plane=True, seed=5)  # seed: see `test_parallel_parity`
CASES = {
    BASIC: "",
    BEFORE_GAN: "saved before the GAN starts",
    FROZEN: "frozen encoder",
    BATCH: "batch norm",
    SYNC_BATCH: "sync_batch norm",
    BF16: "bf16",
    EMA: "moving average",
    PLANE: "on the plane",
    STAGES: "at a stage's edge",
}


class Pair(NamedTuple):
    """One checkpoint and who goes on from it."""

    case: Case
    saved_on: str
    resumed_on: str

    def __str__(self) -> str:
        notes = f", {CASES[self.case]}" if CASES[self.case] else ""
        return f"{self.saved_on} -> {self.resumed_on}{notes}"


def matrix(near: bool) -> list[Pair]:
    """Pairs of a row with itself and with the one `NEXT` further down, or all others."""
    names = list(ROWS)
    chosen = {(name, names[(i + step) % len(names)]) for i, name in enumerate(names) for step in (0, NEXT)}
    return [Pair(BASIC, a, b) for a in names for b in names if ((a, b) in chosen) == near]


def special() -> list[Pair]:
    kept = "ZeRO-3 x2 small kept"
    chosen = {
        BASIC: [
            "FSDP x2 > ZeRO-0 x2", "ZeRO-0 x2 > DDP x2", "ZeRO-3 x2 offload > FSDP x2",
            "DDP x2 > ZeRO-3 x2 offload", f"FSDP x4 > {kept}", f"{kept} > single",
        ],
        BEFORE_GAN: [
            "single > ZeRO-1 x2", "DDP x2 > ZeRO-3 x2", "FSDP x2 > ZeRO-2 x2", "ZeRO-3 x2 > FSDP x4",
        ],
        FROZEN: [
            "FSDP x2 > ZeRO-3 x2", "ZeRO-3 x2 > ZeRO-2 x2", "ZeRO-2 x2 > FSDP x2", f"single > {kept}",
        ],
        # Each rank's own batch statistics: the same cut into ranks only.
        BATCH: [
            "DDP x2 > FSDP x2", "FSDP x2 > ZeRO-2 x2", "ZeRO-2 x2 > ZeRO-3 x2", "ZeRO-3 x2 > DDP x2",
        ],
        SYNC_BATCH: ["single > FSDP x4", "FSDP x4 > DDP x2"],
        EMA: [
            "single > ZeRO-3 x2", "FSDP x2 > FSDP x2", "FSDP x4 > ZeRO-1 x2", "ZeRO-2 x2 > HSDP 2x2",
            "ZeRO-3 x2 > DDP x2", "ZeRO-2 x2 offload > FSDP x2 offload",
        ],
        STAGES: [
            "single > FSDP x4", "FSDP x2 > ZeRO-3 x2", "ZeRO-3 x2 > ZeRO-3 x2", "ZeRO-2 x2 > DDP x2",
            "ZeRO-3 x4 > ZeRO-2 x2 offload", "ZeRO-2 x2 offload > ZeRO-2 x2 offload", "HSDP 2x2 > single",
        ],
        PLANE: ["single > FSDP x4", "FSDP x2 > ZeRO-3 x2", "ZeRO-3 x2 > ZeRO-2 x2", "ZeRO-2 x2 > DDP x2"],
    }  # fmt: skip
    return [Pair(case, *text.split(" > ")) for case, texts in chosen.items() for text in texts]


def by_world(pairs: list[Pair]) -> list[Pair]:
    """Each pool of processes is used up before the next."""
    return sorted(pairs, key=lambda pair: ALL_ROWS[pair.resumed_on].world)


def on(name: str, function: Callable, **arguments: Any) -> dict[str, Any]:
    row = ALL_ROWS[name]
    if row.world == 1:
        return function(row=row, **arguments)
    return run(row.world, f"{function.__module__}:{function.__name__}", row=row, **arguments)[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[Case, str], tuple[Path, dict[str, Any]]]:
    """The checkpoint of a row, and how its run went on without interruption; made when first asked for."""
    made: dict[tuple[Case, str], tuple[Path, dict[str, Any]]] = {}

    def save(case: Case, name: str) -> tuple[Path, dict[str, Any]]:
        if (case, name) not in made:
            folder = tmp_path_factory.mktemp("run")
            made[case, name] = folder, on(name, train_and_save, case=case, folder=folder)
        return made[case, name]

    return save


@pytest.fixture(scope="module")
def table(summary):
    """(saved on, resumed on) -> largest relative difference; printed at the end."""
    found: dict[Pair, float] = {}
    yield found
    lines = [" " * 21 + "".join(f"{i:>9}" for i, _ in enumerate(ROWS, 1))]
    for i, a in enumerate(ROWS, 1):
        cells = [found.get(Pair(BASIC, a, b)) for b in ROWS]
        lines.append(f"{i:>2} {a:18}" + "".join(f"{'' if c is None else f'{c:.1e}':>9}" for c in cells))
    listed = [pair for pair in found if pair.case != BASIC or {pair.saved_on, pair.resumed_on} & set(OTHERS)]
    lines += [f"{found[pair]:.1e}  {pair}" for pair in listed]
    summary[f"saved on (down), resumed on (across): largest relative difference, bound {BOUND:.0e}"] = lines


@pytest.mark.parametrize("pair", by_world(matrix(near=True)), ids=str)
def test_goes_on_as_if_never_stopped(pair, saved, table):
    check(pair, saved, table)


@pytest.mark.drill
@pytest.mark.parametrize("pair", by_world(matrix(near=False) + special()), ids=str)
def test_goes_on_on_any_other(pair, saved, table):
    check(pair, saved, table)


def check(pair: Pair, saved: Callable, table: dict[Pair, float]) -> None:
    folder, reference = saved(pair.case, pair.saved_on)
    found = differences(on(pair.resumed_on, resume, case=pair.case, folder=folder), reference)
    worst = max(found, key=found.__getitem__)
    table[pair] = found[worst]
    assert found[worst] <= (0 if pair.saved_on == pair.resumed_on else BOUND), worst
    # Not 0 on another engine: single -> FSDP x4 with sync_batch differed in a whole run of this file and not alone;
    # the cause isn't known yet.
    exact = pair.saved_on == pair.resumed_on
    outputs = [found[name] for name in found if name.startswith("output/")]
    assert outputs and max(outputs) <= (0 if exact else 1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_a_save_changes_nothing(name, saved):
    _, found = saved(BASIC, name)
    plain = train_plain(BASIC)
    trained = {name: value for name, value in found["state"].items() if name in plain["state"]}
    plain["records"] = plain["records"][-len(found["records"]) :]
    assert max(differences({**found, "state": trained}, plain).values()) <= BOUND


@pytest.mark.parametrize(
    "how", [{"compile": True}, {"recompute": "full"}, {"compile": True, "recompute": "selective"}]
)
def test_neither_compiled_nor_recomputed_blocks_change_what_is_saved(how):
    """So a resume may turn either on or off; that they compute the same is the parity suite's matter."""
    plain, other = (
        [(s.name, s.start, s.data.shape) for network in networks(BASIC, row) for s in network.fragments()]
        for row in (ROWS["single"], replace(ROWS["single"], **how))
    )
    assert plain == other and len(plain) > 100


@pytest.mark.parametrize(
    "saved_on, resumed_on",
    [
        ("ZeRO-2 x2", "ZeRO-2 x2"),
        ("ZeRO-2 x2", "ZeRO-3 x2 small kept"),
        ("ZeRO-3 x2", "ZeRO-3 x2"),
        ("ZeRO-3 x2", "ZeRO-1 x2"),
    ],
)
def test_low_precision_copies_follow_the_masters(saved_on, resumed_on, saved):
    folder, reference = saved(BF16, saved_on)
    found = on(resumed_on, resume, case=BF16, folder=folder)
    difference = differences(found, reference)
    exact = difference if saved_on == resumed_on else [n for n in difference if n.startswith("output/")]
    assert exact and all(difference[name] == 0 for name in exact)


@pytest.mark.parametrize("name", ["single", "FSDP x2", "ZeRO-2 x2"])
@pytest.mark.parametrize("drop", ["step", "exp_avg", "exp_avg_sq"])
def test_notices_what_is_lost_on_the_way(name, drop, saved):
    folder, reference = saved(BASIC, "FSDP x4")
    found = on(name, resume, case=BASIC, folder=folder, drop=drop)
    assert max(differences(found, reference).values()) > 1000 * BOUND
