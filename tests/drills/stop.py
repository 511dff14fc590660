"""Stop a run by signals, again and again, and see how long each took to become a save.

    python -m tests.drills.stop --stops 20 --world 2 --engine fsdp

Each life goes on from the last one's save and is signalled at a random moment, on a random rank. In the end the
run equals, bit for bit, one that was never stopped.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from neuropbr_dist.cluster.stop import SIGNALS
from tests.drills.kill import ENGINES, STEPS_AFTER, newest_step, wait_until
from tests.support.train_runs import assert_same_run, metrics, start, timings

SETTINGS = {
    "training__epochs": 10_000,
    "training__gan_start_epoch": 2,
    "training__val_every_n_epochs": 10_000,
    "training__log_images_every_n_epochs": 10_000,
    "training__save_every_n_epochs": 10_000,
}
LONGEST_S = 2.0
"""Of a life after its first step."""


def drill(folder: Path, *, stops: int, world: int, engine: str, seed: int = 0) -> list[dict[str, float]]:
    """Run the drill in an empty folder; what each stop took, in seconds.

    Raises:
        AssertionError: a run didn't end well, or the end differs from an uninterrupted run's.
    """
    chance, words = random.Random(seed), ["--resume", "auto", *ENGINES[engine]]
    run, whole = folder / "stopped", folder / "whole"
    for _ in range(stops):
        reached = newest_step(run)
        launch = start(run, *words, world=world, **SETTINGS)
        wait_until(launch, lambda reached=reached: steps_logged(run) > reached)
        time.sleep(chance.uniform(0, LONGEST_S))
        os.kill(chance.choice(launch.processes).pid, chance.choice(SIGNALS))
        ended = launch.wait()
        assert ended.code == 0, ended.err
    last = newest_step(run) + STEPS_AFTER
    for place in (run, whole):
        ended = start(place, *words, "--stop-after-steps", str(last), world=world, **SETTINGS).wait()
        assert ended.code == 0, ended.err
    assert_same_run(run, whole)
    return [line["stop"] for line in timings(run) if "stop" in line]


def steps_logged(folder: Path) -> int:
    return metrics(folder)[-1]["step"] if (folder / "metrics.jsonl").exists() else 0


def table(found: list[dict[str, float]]) -> str:
    """Milliseconds: median and longest."""
    shares = [s["signal_to_saved_s"] / (s["longest_step_s"] + s["longest_save_s"]) for s in found]
    lines = [f"{len(found)} stops; of the bound, one step and one save: {max(shares):.0%} at most"]
    for name in found[0]:
        times = [1000 * stop[name] for stop in found]
        lines.append(f"  {name:18} median {statistics.median(times):6.0f} ms, longest {max(times):6.0f} ms")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--stops", type=int, required=True, metavar="N")
    p.add_argument("--world", type=int, default=2, metavar="N", help="default %(default)s")
    p.add_argument("--engine", choices=ENGINES, default="fsdp", help="default %(default)s")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments; default %(default)s")
    args = p.parse_args()
    with TemporaryDirectory() as folder:
        found = drill(Path(folder), stops=args.stops, world=args.world, engine=args.engine, seed=args.seed)
        print(table(found))


if __name__ == "__main__":
    main()
