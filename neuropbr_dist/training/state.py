"""State of a run besides its tensors, and its way to and from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_type_hints

from neuropbr_dist.checkpoint import Checkpoint, share
from neuropbr_dist.config.schema import NonNegativeInt
from neuropbr_dist.config.text import shown
from neuropbr_dist.config.values import fitted
from neuropbr_dist.errors import UserError
from neuropbr_dist.fragment import Fragment
from neuropbr_dist.parallel import Network
from neuropbr_dist.parallel.sync_batch import average_running_statistics
from neuropbr_dist.ranks import all_gather_object, rank, world_size
from neuropbr_dist.training.ema import PREFIX, WeightAverage
from neuropbr_dist.training.schedule import Plateau

log = logging.getLogger(__name__)

AVERAGE = f"generator/{PREFIX}"
"""Beginning of the averaged weights' names in a checkpoint."""


FORMER_NAMES = {"lives": "starts"}
"""Names of fields in older saves -> today's."""


@dataclass
class Progress:
    """Progress of a run; JSON in every checkpoint."""

    step: NonNegativeInt = 0
    cursor: NonNegativeInt = 0
    """Samples of the run consumed."""
    best: float | None = None
    """Lowest validation loss so far."""
    skipped: dict[str, NonNegativeInt] = field(default_factory=lambda: {"generator": 0, "discriminator": 0})
    """Updates left out because of non-finite values."""
    global_batch: NonNegativeInt = 0
    data: str = ""
    """Fingerprint of the training set."""
    plateau: dict[str, dict[str, int | float | None]] = field(default_factory=dict)
    counters: dict[str, dict[str, float]] = field(default_factory=dict)
    """Adam's step count (and fp16's loss scale) of each network."""
    starts: list[dict[str, int | str]] = field(default_factory=list)
    """Each start of the run: from which step, at which world size, on which engine."""

    @classmethod
    def of(cls, state: dict[str, Any], parts: Collection[str] = ()) -> Progress:
        """Return what a checkpoint's state says.

        Args:
            parts: the networks that the run has, whose counters must be there.

        Raises:
            UserError: it isn't a run's state: a value is missing or of another type.
        """
        kinds, where = get_type_hints(cls, include_extras=True), "state.json"
        state = {FORMER_NAMES.get(name, name): value for name, value in state.items()}
        if unknown := state.keys() - kinds.keys():
            raise UserError(f"{where}: unknown key {shown(min(unknown))}")
        if missing := {"step", "cursor"} - state.keys():
            raise UserError(f"{where}: {min(missing)} is missing")
        progress = cls(**{name: fitted(name, value, kinds[name], where) for name, value in state.items()})
        sound = (
            progress.skipped.keys() == cls().skipped.keys()
            and all(progress.counters.get(part, {}).get("step", -1) >= 0 for part in parts)
            and all(found.keys() == asdict(Plateau()).keys() for found in progress.plateau.values())
        )
        if not sound:
            raise UserError(f"{where}: counters of the networks or of their schedules are missing")
        return progress

    def begin(self, global_batch: int, data: str, world_size: int, engine: str) -> None:
        """Note that another start begins here; `data` is the training set's fingerprint."""
        self.global_batch, self.data = global_batch, data
        self.starts.append({"step": self.step, "world_size": world_size, "engine": engine})


def fragments(networks: dict[str, Network], ema: WeightAverage | None = None) -> list[Fragment]:
    """Return this rank's pieces of all state, under canonical names: `generator/param/NAME`, `generator/ema/NAME`, …"""
    found = [
        replace(piece, name=f"{part}/{piece.name}")
        for part, network in networks.items()
        for piece in network.fragments()
    ]
    averages = ema.fragments() if ema else []
    return found + [replace(piece, name=f"generator/{piece.name}") for piece in averages]


def saved_fragments(networks: dict[str, Network], ema: WeightAverage | None = None) -> list[Fragment]:
    """Return the pieces that this rank is to save: of a replicated network, whose ranks all hold all of it,
    its share."""
    found = []
    for part, network in networks.items():
        pieces = fragments({part: network}, ema if part == "generator" else None)
        found += share(pieces, rank(), world_size()) if network.replicated else pieces
    return found


def snapshot(progress: Progress, networks: dict[str, Network]) -> dict[str, Any]:
    """Return `progress` as it is saved, counters included. Collective, called before `fragments`.

    Ranks agree here on what they may hold differently: batch norm's running
    statistics, and counters, of which a rank without any state has none.
    """
    for part, network in networks.items():
        average_running_statistics(network.module)
        counters = all_gather_object(network.counters())
        progress.counters[part] = {key: max(r[key] for r in counters) for key in counters[0]}
    return asdict(progress)


def restore(
    checkpoint: Checkpoint,
    networks: dict[str, Network],
    ema: WeightAverage | None = None,
) -> Progress:
    """Fill networks and average from a checkpoint and return where the run stood. Collective.

    A checkpoint without an average starts one from its weights, and says so; an average that the run
    doesn't keep is left out.
    """
    progress = Progress.of(checkpoint.state, networks)
    averaged = any(name.startswith(AVERAGE) for name in checkpoint.tensors)
    checkpoint.load(fragments(networks, ema if averaged else None), leave_out="" if ema else AVERAGE)
    for part, network in networks.items():
        network.loaded(progress.counters[part])
    if ema is not None and not averaged:
        ema.restart()
        log.info(f"  training.ema_decay: {checkpoint.path} holds no average; it starts from the weights")
    return progress
