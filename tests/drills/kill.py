"""Kill a run again and again, at random moments, and see that nothing is lost.

    python -m tests.drills.kill --kills 100 --world 2 --engine zero2

Each life is a run of `launch/train.py` that saves after every step and is resumed by
`--resume auto`. SIGKILL meets one rank or all of them: at the start, between saves, amid
one. What is left must hold a complete checkpoint, no older than the last one seen. In the end the
run equals, bit for bit, one that was never killed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from neuropbr_dist.checkpoint import open_newest
from tests.support.distributed import ROOT
from tests.support.said import said
from tests.support.train_runs import Launch, assert_same_run, start

ENGINES = {
    "ddp": ["--engine", "ddp"],
    "fsdp": ["--engine", "fsdp"],
    **{f"zero{stage}": ["--ds", str(ROOT / f"ds_configs/zero{stage}.json")] for stage in (1, 2, 3)},
}
SETTINGS: dict[str, Any] = {
    "training__epochs": 10_000,
    "training__gan_start_epoch": 2,
    "training__val_every_n_epochs": 5,
    "training__log_images_every_n_epochs": 10_000,
    "training__save_every_n_epochs": 10_000,
    "training__save_every_n_steps": 1,
}
START_S, BETWEEN_S, AMID_S = 3.0, 0.5, 0.01
"""Longest delays of a kill: after the start, after a save, after a save has begun."""
WAIT_S = 120
"""Time for a life to save once."""
GRACE_S = 30
"""Time for the other ranks to end when one is gone, as torchrun gives them."""
STEPS_AFTER = 3


@dataclass
class DrillOutcome:
    kills: int = 0
    amid_saves: int = 0
    """Kills that left an unfinished save behind."""
    before_saves: int = 0
    """Kills in lives that had saved nothing yet."""
    stuck: int = 0
    """Ranks that did not end by themselves after another was killed."""
    steps: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.seconds:.0f} s ({60 * self.kills / self.seconds:.1f} a minute), "
            f"{self.amid_saves} amid a save, {self.before_saves} before a life's first save, "
            f"{self.stuck} ranks stuck; {self.steps} steps, equal to an uninterrupted run's bit for bit"
        )


def drill(folder: Path, *, kills: int, world: int, engine: str, seed: int = 0) -> DrillOutcome:
    """Run the drill in an empty folder.

    Raises:
        AssertionError: a checkpoint is damaged, older than it should be, or the end differs.
    """
    chance, outcome, begin = random.Random(seed), DrillOutcome(), time.monotonic()
    words = ["--resume", "auto", *ENGINES[engine]]
    for _ in range(kills):
        launch = start(folder / "killed", *words, world=world, **SETTINGS)
        reached = outcome.steps
        wait_for_the_moment(launch, folder / "killed", chance)
        outcome.stuck += kill(launch, chance)
        outcome.kills += 1
        outcome.amid_saves += bool(list((folder / "killed").glob("*.tmp-*")))
        outcome.steps = newest_step(folder / "killed")
        assert outcome.steps >= reached
        outcome.before_saves += outcome.steps == reached
        outcome.seconds = time.monotonic() - begin
    outcome.steps += STEPS_AFTER
    for name in ("killed", "whole"):
        until = ["--stop-after-steps", str(outcome.steps)]
        ended = start(folder / name, *words, *until, world=world, **SETTINGS).wait()
        assert ended.code == 0, ended.err
    assert_same_run(folder / "killed", folder / "whole")
    assert leftovers(folder / "killed") == []
    return outcome


def leftovers(folder: Path) -> list[Path]:
    """What writers that were killed have left."""
    return [*folder.rglob(".*"), *folder.glob("*.tmp-*")]


def wait_for_the_moment(launch: Launch, folder: Path, chance: random.Random) -> None:
    moment = chance.choice(["start", "between saves", "amid a save", "amid a save"])
    if moment != "start":
        before = saves(folder)
        wait_until(launch, lambda: bool(saves(folder) - before))
    if moment == "amid a save":
        wait_until(launch, lambda: bool(list(folder.glob("*.tmp-*"))))
    longest = {"start": START_S, "between saves": BETWEEN_S, "amid a save": AMID_S}[moment]
    time.sleep(chance.uniform(0, longest))


def wait_until(launch: Launch, condition: Any) -> None:
    """Return as soon as what a launch does has brought `condition` about."""
    end = time.monotonic() + WAIT_S
    while True:
        alive = all(process.is_alive() for process in launch.processes)
        if condition():  # asked after that: a run may bring it about, and end, between the two
            return
        assert alive, launch.said("err")
        assert time.monotonic() < end, launch.said("out") + launch.said("err")


def saves(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("step_*") if ".tmp-" not in path.name}


def kill(launch: Launch, chance: random.Random) -> int:
    """SIGKILL one rank, or all; the rest is ended as a launcher would. Returns how many had to be forced."""
    ranks = launch.processes
    for victim in [chance.choice(ranks)] if chance.random() < 0.5 else ranks:
        os.kill(victim.pid, signal.SIGKILL)
    for process in ranks:
        process.terminate()
    end = time.monotonic() + GRACE_S
    for process in ranks:
        process.join(max(0, end - time.monotonic()))
    stuck = [process for process in ranks if process.is_alive()]
    for process in stuck:
        process.kill()
    launch.wait()
    return len(stuck)


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint, verified; 0: none yet."""
    with said() as complaints:
        checkpoint = open_newest(folder)
    assert complaints == []
    if checkpoint is None:
        return 0
    with checkpoint:
        return checkpoint.state["step"]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, required=True, metavar="N")
    p.add_argument("--world", type=int, default=2, metavar="N", help="default %(default)s")
    p.add_argument("--engine", choices=ENGINES, default="fsdp", help="default %(default)s")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments; default %(default)s")
    args = p.parse_args()
    with TemporaryDirectory() as folder:
        print(drill(Path(folder), kills=args.kills, world=args.world, engine=args.engine, seed=args.seed))


if __name__ == "__main__":
    main()
