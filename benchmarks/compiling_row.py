"""The phases of a run in this process, and what is compiled in each: `python -m` this module, in a fresh process."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._dynamo.utils import counters

from benchmarks.options import fields_of, measurement
from benchmarks.setting import changed, setting, title
from benchmarks.step import StepBench
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.builtin.cache import sample_cameras
from neuropbr_dist.training.estimate import available_bytes
from neuropbr_dist.training.setup import Setup
from neuropbr_dist.training.validation import validate

AGAIN = "training again"
"""The phase for which everything is compiled when it begins."""


class Compiled(NamedTuple):
    """What torch.compile has done in this process."""

    frames: int
    """Functions that it was given, each for inputs of one kind."""
    graphs: int
    """Those that it has compiled; the others run uncompiled."""
    breaks: int
    """Places where a graph ends inside a function."""
    found: int
    """Pieces of generated code taken from the cache."""
    made: int
    """Pieces that weren't there, or can't be kept there."""

    @classmethod
    def so_far(cls) -> Compiled:
        frames, inductor = counters["frames"], counters["inductor"]
        return cls(
            frames["total"],
            frames["ok"],
            sum(counters["graph_break"].values()),
            inductor["fxgraph_cache_hit"],
            inductor["fxgraph_cache_miss"] + inductor["fxgraph_cache_bypass"],
        )

    def since(self, before: Compiled) -> Compiled:
        """What came after `before`."""
        return Compiled(*(now - then for now, then in zip(self, before, strict=True)))


def measure(where: Setup, memory: str, steps: int) -> dict[str, Any]:
    """GAN off, GAN on, validation, and training again: `steps` of each phase.

    Args:
        memory: memory plan, resolved.
    """
    bench = StepBench(where, memory)
    with_gan, without = partial(bench.step, gan=True), partial(bench.step, gan=False)
    phases: dict[str, Callable[[], object]] = {"GAN off": without, "GAN on": with_gan}
    if "discriminator" not in bench.networks:
        del phases["GAN on"]
    phases |= {"validation": validation(where, bench), AGAIN: with_gan}
    rows = [measured(name, run, bench, steps, known=name == AGAIN) for name, run in phases.items()]
    built_s = rows[0]["began_s"]
    return {
        "setting": f"{title(where)}, {changed(where, memory=memory).recompute}",
        "first_step_s": built_s + rows[0]["first_s"],
        "settled_s": built_s + sum(row["first_s"] for row in rows),
        "phases": rows,
    }


def measured(
    phase: str, run: Callable[[], object], bench: StepBench, steps: int, *, known: bool
) -> dict[str, Any]:
    """One phase. Whatever is compiled after its first step is a recompilation; in a phase that is `known`, all is."""
    seconds, done, before = [], [], Compiled.so_far()
    began_s = time.perf_counter() - bench.began
    for _ in range(steps):
        began = time.perf_counter()
        run()
        bench.settle()
        seconds.append(time.perf_counter() - began)
        done.append(Compiled.so_far())
    first, whole = done[0].since(before), done[-1].since(before)
    return {
        "phase": phase, "began_s": began_s, "first_s": seconds[0], "later_ms": 1e3 * statistics.median(seconds[1:]),
        "graphs": whole.graphs, "uncompiled": whole.frames - whole.graphs, "graph_breaks": whole.breaks,
        "recompilations": whole.frames - (0 if known else first.frames), "found": whole.found, "made": whole.made,
    }  # fmt: skip


def validation(where: Setup, bench: StepBench) -> Callable[[], object]:
    """A run's own validation, of one micro-batch of noise."""
    n, size = where.cfg.training.batch_size, where.samples.side
    views, maps = (
        torch.randint(256, (n, *channels, size, size), dtype=torch.uint8) for channels in ((3, 3), (8,))
    )
    batch = MicroBatch(views, maps, torch.ones(n), [f"noise {i}" for i in range(n)])
    if where.cfg.model.align == "plane":
        batch = batch._replace(
            cameras=torch.from_numpy(sample_cameras(0, 0).encoded("clean")).repeat(n, 1, 1)
        )
    return lambda: validate(
        bench.networks["generator"],
        [batch],
        where.cfg.transform,
        bench.objective.reconstruction_loss,
        where.device,
    )


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Measure, and write the figures."""
    p = measurement(__doc__, prog)
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    p.add_argument("--steps", type=int, required=True, metavar="N", help="of each phase")
    args = p.parse_args(argv)
    with setting(fields_of(args, {}).configuration()) as where:
        wanted = where.cfg.training.compile
        compiled = "blocks" if wanted == "auto" else wanted  # what is measured here, on a CPU as well
        room = available_bytes(where.device, where.env.local_world_size)
        where = changed(where, room, compile=compiled)
        args.out.write_text(json.dumps(measure(where, where.memory, args.steps), indent=1) + "\n")


if __name__ == "__main__":
    run()
