"""The order of samples: one global cursor, no per-rank state.

A run is `epochs` seeded permutations of the training set, one after another. The
cursor is the number of samples consumed; a step of any world size takes the next
`global_batch` positions. So a resume needs the cursor and the seed only, and may
change the world size.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from neuropbr_dist.errors import UserError


class Slot(NamedTuple):
    """A place in a micro-batch. Weight 0 marks filler that keeps shapes and collectives equal."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which no one needs here
    """Element of the training set."""
    weight: float
    """1 for a sample of the batch, 0 for filler."""


class MicroBatching(NamedTuple):
    """Cut of a rank's slots into micro-batches; the same on every rank and in every step."""

    size: int
    """Samples in a micro-batch."""
    per_step: int
    """Micro-batches in a step."""


@dataclass
class SampleOrder:
    """Position in the run -> (epoch, element of the training set).

    Position `p` lies in epoch `p // n` at element `p % n` of that epoch's
    permutation. At most two permutations are held at a time (8 bytes an element).
    """

    n: int
    """Samples in the training set."""
    global_batch: int
    """Samples in a step, over all ranks."""
    epochs: int
    seed: int
    _permutations: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("n", "global_batch", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def total_samples(self) -> int:
        """Samples in the run."""
        return self.epochs * self.n

    @property
    def steps(self) -> int:
        """Steps in the run; its last batch may be short."""
        return -(-self.total_samples // self.global_batch)

    def batch_size_at(self, cursor: int) -> int:
        """Return how many samples the batch at `cursor` has: `global_batch`, less at the end of the run."""
        return max(0, min(self.global_batch, self.total_samples - cursor))

    def epoch_of(self, cursor: int) -> int:
        """Return the epoch of the sample at `cursor`, hence of the step that begins there."""
        return cursor // self.n

    def indices(self, cursor: int, count: int) -> list[tuple[int, int]]:
        """Return (epoch, element) of the positions `cursor` to `cursor + count - 1`.

        Raises:
            IndexError: The positions are not all in the run.
        """
        if cursor < 0 or count < 0 or cursor + count > self.total_samples:
            raise IndexError(f"positions {cursor}..{cursor + count - 1} of a run of {self.total_samples}")
        result: list[tuple[int, int]] = []
        while count > 0:
            epoch, start = divmod(cursor, self.n)
            elements = self._permutation(epoch)[start : start + count].tolist()
            result.extend((epoch, element) for element in elements)
            cursor += len(elements)
            count -= len(elements)
        return result

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            while len(self._permutations) >= 2:
                self._permutations.pop(next(iter(self._permutations)))
            self._permutations[epoch] = seeded_permutation(self.n, self.seed, epoch)
        return self._permutations[epoch]


def seeded_permutation(n: int, *key: int) -> np.ndarray:
    """Return a permutation of 0..n-1, int64 (n,), that depends on `n` and the integers of `key` only.

    Sorts raw PCG64 words rather than calling `Generator.permutation`: numpy promises
    the words to be the same in every version, but not the generator's methods (NEP 19).
    """
    words = np.random.PCG64(np.random.SeedSequence([k % 2**64 for k in key])).random_raw(n)
    return np.argsort(words, kind="stable")


def rank_share(count: int, world_size: int, rank: int) -> tuple[int, int]:
    """Return (start, length) of a rank's contiguous share of `count`; shares differ by at most one."""
    each, extra = divmod(count, world_size)
    return rank * each + min(rank, extra), each + (rank < extra)


def micro_batches(
    global_batch: int, world_size: int, batch_size: int, sample_ranks: int = 1
) -> MicroBatching:
    """Cut the largest share of a global batch into equal micro-batches.

    The micro-batch is the largest divisor of the share that is at most `batch_size`.

    Args:
        world_size: ranks, those that share a sample counted as one.
        sample_ranks: how many share each; for the message alone.

    Raises:
        UserError: The world is larger than the global batch.
    """
    if world_size > global_batch:
        sharing = f", of which {sample_ranks} share a sample" if sample_ranks > 1 else ""
        raise UserError(
            f"training.global_batch_size = {global_batch} is less than the world size {world_size * sample_ranks}{sharing};"
            " every rank needs a sample: raise it, or start fewer ranks"
        )
    slots = -(-global_batch // world_size)
    # Divisors come in pairs, one of each up to the root: first few large micro-batches, then many small ones.
    root = math.isqrt(slots)
    counts = (n for n in range(-(-slots // batch_size), root + 1) if slots % n == 0)
    sizes = (d for d in range(min(batch_size, root), 0, -1) if slots % d == 0)
    size = next(itertools.chain((slots // n for n in counts), sizes))
    return MicroBatching(size, slots // size)


def step_micro_batches(
    order: SampleOrder, cursor: int, world_size: int, rank: int, batch_size: int
) -> list[list[Slot]]:
    """Return a rank's micro-batches of the step that begins at `cursor`.

    Every rank gets the same number of micro-batches of the same size in every step of
    the run. A short rank (or the run's short last batch) is filled up with weight-0
    slots that repeat the rank's first sample, or the batch's first where it has none.
    The weight-1 slots of all ranks, in the order of ranks, are the batch.

    Raises:
        UserError: The world is larger than the global batch.
        IndexError: `cursor` is not in the run.
    """
    plan = micro_batches(order.global_batch, world_size, batch_size)
    start, length = rank_share(order.batch_size_at(cursor), world_size, rank)
    positions = order.indices(cursor + start, length)
    slots = [Slot(epoch, index, 1.0) for epoch, index in positions]
    filler = Slot(*(positions or order.indices(cursor, 1))[0], 0.0)
    slots += [filler] * (plan.size * plan.per_step - length)
    return [slots[i : i + plan.size] for i in range(0, len(slots), plan.size)]
