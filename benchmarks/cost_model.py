"""What a step moves and what a rank holds, by formula: the tables of docs/scaling.md.

    python -m benchmarks.cost_model            # check docs/scaling.md
    python -m benchmarks.cost_model --write    # bring it up to date

Bytes are those that a rank sends (it receives as many). A ring moves (n - 1) / n of the whole in
an all-gather or a reduce-scatter over n ranks and twice that in an all-reduce (Rabenseifner 2004; the ZeRO
paper, Rajbhandari et al. 2020, counts the same). One micro-batch a step; with accumulation the all-gathers
of parameters repeat for each micro-batch, the reductions of gradients don't.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.strip_cost import sent_in_a_step
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser
from neuropbr_dist.config import TrainConfig, load
from neuropbr_dist.data.order import SampleOrder
from neuropbr_dist.errors import UserError
from neuropbr_dist.models import Generator
from neuropbr_dist.training.estimate import count_parameters

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
WORLDS = (1, 8, 64, 512, 1024)
PER_NODE = 8
GB = 1e9
LOW, FULL, STATE = 2, 4, 12
"""Bytes a parameter: bf16, float32, and a master with two moments."""
LINK_IN, LINK_ACROSS = 300e9, 50e9
"""Bytes a second a GPU sends: inside a node (NVLink of an H100, of 450 nominal), across (one 400 Gb/s adapter a GPU)."""
HOP_IN, HOP_ACROSS = 3e-6, 10e-6
"""Seconds a ring's message takes from rank to rank: assumed."""
WRITE_RATE, READ_RATE = 50e9, 100e9
"""A parallel file system's bytes a second, all ranks together: assumed."""
RANK_RATE = 1.4e9
"""One rank's, by SHA-256 on one core (measured)."""


@dataclass(frozen=True)
class Engine:
    """Bytes a parameter, as functions of the world size n and the ranks of a node g."""

    name: str
    held: Callable[[int, int], float]
    """Parameters, gradients, masters and moments on a rank."""
    moved: Callable[[int, int], float]
    """Sent by a rank in a step."""
    across: Callable[[int, int], float]
    """Of `moved`, out of the node through this GPU's adapter; none if there is one node."""


def ring(n: int) -> float:
    """Share of a message that a rank sends in a ring's all-gather or reduce-scatter."""
    return (n - 1) / n


def everywhere(per_parameter: Callable[[int], float]) -> Callable[[int, int], float]:
    """A value that does not depend on the ranks of a node."""
    return lambda n, _g: per_parameter(n)


def flat(moved: Callable[[int], float]) -> Callable[[int, int], float]:
    """Of the g rings that NCCL lays over all ranks, each leaves a node once: 1/g of a rank's bytes each adapter."""
    return lambda n, g: moved(n) / g if n > g else 0.0


def engine(name: str, held: Callable[[int], float], moved: Callable[[int], float]) -> Engine:
    """An engine that treats all ranks alike: bytes a parameter held and moved on `n` ranks."""
    return Engine(name, everywhere(held), everywhere(moved), flat(moved))


# Gradients are float32 under ddp and fsdp (fp32 reduction), bf16 under ZeRO.
ENGINES = (
    engine("ddp", lambda n: STATE + FULL, lambda n: 2 * FULL * ring(n)),
    engine("ZeRO-1", lambda n: 2 * LOW + STATE / n, lambda n: (2 * LOW + LOW) * ring(n)),
    engine("ZeRO-2", lambda n: LOW + (LOW + STATE) / n, lambda n: 2 * LOW * ring(n)),
    engine("ZeRO-3", lambda n: (2 * LOW + STATE) / n, lambda n: 3 * LOW * ring(n)),
    engine("fsdp", lambda n: (STATE + FULL) / n, lambda n: (2 * LOW + FULL) * ring(n)),
    # Inside a node as fsdp; the float32 shards of gradients are then averaged across nodes.
    Engine(
        "fsdp --shard node",
        lambda n, g: (STATE + FULL) / min(n, g),
        lambda n, g: (2 * LOW + FULL) * ring(min(n, g)) + 2 * FULL / min(n, g) * ring(max(1, n // g)),
        lambda n, g: 2 * FULL / min(n, g) * ring(max(1, n // g)),
    ),
)


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def gigabytes(value: float) -> str:
    """Bytes as GB with two places."""
    return f"{value / GB:.2f}" if value else "0"


def by_engine(parameters: int, value: Callable[[Engine], Callable[[int, int], float]]) -> list[str]:
    """A row an engine, a column a world size: `value` in GB for so many parameters."""
    rows = [
        [f"`{e.name}`" if e.name.startswith(("ddp", "fsdp")) else e.name]
        + [gigabytes(parameters * value(e)(n, PER_NODE)) for n in WORLDS]
        for e in ENGINES
    ]
    return table(["GB", *(f"{n:,}" for n in WORLDS)], rows)


def step_seconds(e: Engine, parameters: int, n: int) -> float:
    """Time on the wires if nothing else runs and no latency counts."""
    across = e.across(n, PER_NODE)
    inside = e.moved(n, PER_NODE) - across
    return parameters * (inside / LINK_IN + across / LINK_ACROSS)


def wire_table(parameters: int) -> list[str]:
    """Milliseconds on the wire a step, by engine and world size."""
    rows = [
        [f"`{e.name}`" if e.name.startswith(("ddp", "fsdp")) else e.name]
        + [f"{1000 * step_seconds(e, parameters, n):.0f}" for n in WORLDS]
        for e in ENGINES
    ]
    return table(["ms", *(f"{n:,}" for n in WORLDS)], rows)


def segment_count(cfg: TrainConfig) -> int:
    """Blocks of the generator that are gathered one by one."""
    with torch.device("meta"):
        return len(Generator(cfg.model).segments())


def ring_latency(n: int, g: int) -> float:
    """Seconds in which one all-gather or reduce-scatter over n ranks moves nothing but its first bytes."""
    nodes = max(1, n // g)
    return (n - nodes) * HOP_IN + (nodes if nodes > 1 else 0) * HOP_ACROSS if n > 1 else 0.0


def latency_table(segments: int) -> list[str]:
    """Each segment is gathered twice and reduced once; under `--shard node` over its node, then reduced across."""
    full = [3 * segments * ring_latency(n, PER_NODE) for n in WORLDS]
    node = [
        segments * (3 * ring_latency(min(n, PER_NODE), PER_NODE) + 2 * max(0, n // PER_NODE - 1) * HOP_ACROSS)
        for n in WORLDS
    ]
    rows = [
        [name, *(f"{1000 * s:.1f}" for s in row)]
        for name, row in (("`fsdp`", full), ("`fsdp --shard node`", node))
    ]
    gathers = [2 * segments * ring_latency(min(n, PER_NODE), PER_NODE) for n in WORLDS]
    rows.append(["of which gathers", *(f"{1000 * s:.1f}" for s in gathers)])
    return table(["ms", *(f"{n:,}" for n in WORLDS)], rows)


def accumulation_table(parameters: int) -> list[str]:
    """Bytes out of the node per adapter in a step of k micro-batches, at 64 GPUs."""
    n, counts = 64, (1, 2, 4, 8)
    full = [parameters * (2 * LOW * k + FULL) * ring(n) / PER_NODE for k in counts]
    node = [parameters * 2 * FULL / PER_NODE * ring(n // PER_NODE)] * len(counts)
    rows = [
        [name, *(gigabytes(b) for b in row)]
        for name, row in (("`fsdp`", full), ("`fsdp --shard node`", node))
    ]
    return table(["GB, 64 GPUs, micro-batches a step:", *map(str, counts)], rows)


def checkpoint_table(parameters: int) -> list[str]:
    """Bytes a rank, seconds to write and to read, by world size."""
    size = STATE * parameters
    rows = []
    for n in WORLDS:
        write = max(size / WRITE_RATE, size / n / RANK_RATE)
        replicated = max(n * size / READ_RATE, size / RANK_RATE)
        rows.append(
            [f"{n:,}", f"{size / n / 1e6:,.1f}", f"{write:.2f}", f"{max(size / n / RANK_RATE, size / READ_RATE):.2f}",
             f"{replicated:.1f}"]
        )  # fmt: skip
    return table(["GPUs", "MB a rank writes", "s to write", "s to read, sharded", "s to read, `ddp`"], rows)


def order_table(cfg: TrainConfig) -> list[str]:
    """What the order of samples costs a loader process in memory."""
    rows = []
    for n in (1_000, 100_000, 10_000_000):
        order = SampleOrder(n, 1024, cfg.training.epochs, cfg.training.seed)
        rows.append([f"{n:,}", f"{2 * 8 * n / 1e6:,.2f}", f"{order.steps:,}"])
    return table(["samples", "MB of order a loader process", "steps of 1,024 in 100 epochs"], rows)


def strips_table(cfg: TrainConfig) -> list[str]:
    """What a rank sends its partners in a step, by side and ranks that share a sample."""
    rows = []
    for side in (2048, 4096):
        for ranks in (2, 4, 8):
            sent = sent_in_a_step(cfg, side, ranks)
            total = sent.rows_sent + sent.tokens_sent + sent.sums_sent
            rows.append(
                [f"{side}²", f"{ranks}", gigabytes(sent.rows_sent), gigabytes(sent.tokens_sent),
                 f"{sent.sums_sent / 1e6:.1f} MB", f"{sent.exchanges}", f"{1000 * total / LINK_IN:.0f}"]
            )  # fmt: skip
    head = ["picture", "K", "GB of rows", "GB of tokens", "sums", "exchanges", "ms on the wires"]
    return table(head, rows)


def tables() -> dict[str, list[str]]:
    """Marker in docs/scaling.md to the lines below it."""
    cfg = load("default")
    counts = count_parameters(cfg.model)
    total = sum(counts.values())
    parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    return {
        "parameters": [f"Parameters of the presets `default` and `guide`: {parts}; together {total:,}."],
        "held": by_engine(total, lambda e: e.held),
        "moved": by_engine(total, lambda e: e.moved),
        "across": by_engine(total, lambda e: e.across),
        "wire": wire_table(total),
        "accumulation": accumulation_table(total),
        "latency": latency_table(segment_count(cfg)),
        "strips": strips_table(cfg),
        "checkpoint": checkpoint_table(total),
        "order": order_table(cfg),
    }


def filled(page: str) -> str:
    """`page` with each table between its markers renewed.

    Raises:
        UserError: a marker is missing.
    """
    for name, lines in tables().items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise UserError(f"{PAGE}: wants one {begin.strip()} and one {end}")
        head, rest = page.split(begin)
        page = head + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1]
    return page


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py cost-model`."""
    p = new_parser(__doc__ or "", prog)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    add_debug(p)
    p.add_argument("--write", action="store_true", help="renew the tables of docs/scaling.md")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Check docs/scaling.md, or with `--write` renew it."""
    args = parser(prog).parse_args(argv)
    page = PAGE.read_text()
    renewed = filled(page)
    if args.write:
        PAGE.write_text(renewed)
    elif renewed != page:
        raise UserError("docs/scaling.md is out of date; run with --write")


if __name__ == "__main__":
    run()
