"""`launch/benchmark.py memory`: what each memory plan takes beside its estimate, and which plan a card gets."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.allocator import limit_memory, outside_bytes
from benchmarks.options import STEP, fields_of, measurement, plans_of
from benchmarks.setting import say, setting, title, write_figures
from benchmarks.step import StepBench
from benchmarks.step_table import add_plans
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.training.estimate import GIB, available_bytes, fastest_plan
from neuropbr_dist.training.memory import PLANS
from neuropbr_dist.training.setup import Setup

CARDS = {16: 15.3, 24: 23.1, 40: 39.0, 80: 78.5, 141: 139.0}
"""GB in a card's name -> GiB that are free on it once CUDA has started; cards of one name differ by some tenths."""

HEAD = """\
| memory plan | GiB predicted | GiB allocated | error | between steps (predicted) | in the step | GiB reserved \
| outside the allocator | ms a step (range) | retries |
|---|---|---|---|---|---|---|---|---|---|"""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py memory`."""
    p = measurement(__doc__, prog)
    add_plans(p)
    p.add_argument(
        "--limit-gib", type=float, metavar="N", help="as on a card of N GiB; default: all of this one"
    )
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print a row a memory plan as they come; then what `auto` takes here and elsewhere."""
    args = parser(prog).parse_args(argv)
    cfg = fields_of(args, STEP).configuration()
    plans = plans_of(cfg, args.plans, PLANS)
    with setting(cfg, "memory") as where:
        found = measure(where, plans, args.steps, args.limit_gib)
    write_figures(args.out, found)


def measure(where: Setup, plans: Sequence[str], steps: int, limit_gib: float | None) -> dict[str, Any]:
    """Return rows and choices, which are printed as they come.

    Args:
        steps: timed, of each plan.
        limit_gib: of the card to stand in for; None: this one.

    Raises:
        UserError: no GPU of `limit_gib`.
    """
    if limit_gib is not None:
        limit_memory(where.device, limit_gib)
    room = available_bytes(where.device, where.env.local_world_size)
    need = where.need
    wanted = need.at(where.samples.side)
    limit = "" if limit_gib is None else f", as on a card of {limit_gib:g} GiB"
    say(where, f"{title(where)}{limit}\n\n{HEAD}")
    rows = []
    for plan in plans:
        rows.append(row(where, plan, Predicted(wanted[plan] / GIB, need.state().held / GIB), steps))
        say(where, line(rows[-1]))
    here = choice(wanted, room)
    cards = [{"card_gb": gb, **choice(wanted, int(free * GIB))} for gb, free in CARDS.items()]
    say(where, f"\nHere `auto` takes {in_words(here)}\n\n{card_table(cards)}")
    return {
        "engine": where.engine, "world": where.env.world_size, "size": where.samples.side,
        "precision": where.precision, "limit_gib": limit_gib,
        "rows": rows, "here": here, "cards": cards,
    }  # fmt: skip


# -- a plan --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predicted:
    """The estimate's peak, GiB."""

    peak: float
    state: float
    """Of it parameters and Adam's state; activations are the rest."""


def row(where: Setup, plan: str, predicted: Predicted, steps: int) -> dict[str, Any]:
    """Measure one memory plan; a step that doesn't fit is a result like any other. GiB, of this rank."""
    found: dict[str, Any] = {
        "plan": plan, "predicted_gib": predicted.peak, "predicted_state_gib": predicted.state,
        "predicted_activations_gib": predicted.peak - predicted.state,
    }  # fmt: skip
    try:
        return found | held(where, plan, predicted, steps)
    except torch.OutOfMemoryError:
        reserved = torch.cuda.max_memory_reserved(where.device) / GIB
        return found | {
            "error": "out of memory",
            "reserved_gib": reserved,
            "outside_gib": outside_bytes(where.device) / GIB,
        }


def held(where: Setup, plan: str, predicted: Predicted, steps: int) -> dict[str, Any]:
    """What the steps of a memory plan take. `state_gib` is held between steps: parameters, Adam's state, and
    gradients where the engine keeps them; others come and go with the activations.

    Raises:
        torch.OutOfMemoryError: more than there is.
    """
    before = torch.cuda.memory_stats(where.device).get("num_alloc_retries", 0)
    bench = StepBench(where, plan)
    found = bench.time(steps)
    batch = sum(part.nbytes for part in bench.batch[:3])
    state = (torch.cuda.memory_allocated(where.device) - batch) / GIB
    return {
        "allocated_gib": found.allocated_gib,
        "error_percent": 100 * (predicted.peak / found.allocated_gib - 1),
        "state_gib": state, "activations_gib": found.allocated_gib - state,
        "reserved_gib": found.reserved_gib, "outside_gib": outside_bytes(where.device) / GIB,
        "segments_expand": any(s.get("is_expandable") for s in torch.cuda.memory_snapshot()),
        "ms": found.ms, "spread_ms": found.spread_ms,
        # Times that the allocator had to give everything free back to the device to go on.
        "retries": torch.cuda.memory_stats(where.device)["num_alloc_retries"] - before,
    }  # fmt: skip


def line(row: Mapping[str, Any]) -> str:
    """A row of the table, Markdown."""
    head = f"| `{row['plan']}` | {row['predicted_gib']:.1f} |"
    if "error" in row:
        return (
            f"{head} {row['error']} | – | – ({row['predicted_state_gib']:.1f}) | – | {row['reserved_gib']:.1f} "
            f"| {row['outside_gib']:.1f} | – | – |"
        )
    return (
        f"{head} {row['allocated_gib']:.1f} | {row['error_percent']:+.1f} % "
        f"| {row['state_gib']:.1f} ({row['predicted_state_gib']:.1f}) | {row['activations_gib']:.1f} "
        f"| {row['reserved_gib']:.1f} | {row['outside_gib']:.1f} | {row['ms']:.0f} ({row['spread_ms']:.0f}) "
        f"| {row['retries']} |"
    )


# -- a card --------------------------------------------------------------------------------


def choice(wanted: Mapping[str, int], room: int) -> dict[str, Any]:
    """What `training.memory = auto` takes with `room` bytes free, and whether a run starts at all.

    Args:
        wanted: estimated bytes by memory plan.
    """
    plan = fastest_plan(wanted, room)
    return {
        "plan": plan,
        "needs_gib": wanted[plan] / GIB,
        "free_gib": room / GIB,
        "starts": wanted[plan] <= room,
    }


def in_words(choice: Mapping[str, Any]) -> str:
    """A plan and why; or that none fits."""
    figures = f"about {choice['needs_gib']:.1f} of {choice['free_gib']:.1f} GiB free"
    return (
        f"`{choice['plan']}`: {figures}" if choice["starts"] else f"none: `{choice['plan']}` needs {figures}"
    )


def card_table(cards: Sequence[Mapping[str, Any]]) -> str:
    """What `auto` would take by the size of the card, Markdown."""
    lines = [f"| {card['card_gb']} GB | {in_words(card)} |" for card in cards]
    return "\n".join(["| card | `auto` takes, by the estimate |", "|---|---|", *lines])
